// SPDX-License-Identifier: Apache-2.0

package handoff

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rehome-net/rehome/handoff/wire"
)

// TestExportRefused: what an exporter cannot give is refused by the right code, and the connection goes on.
func TestExportRefused(t *testing.T) {
	fail := func(err error) Exporter { return func(context.Context, *Conn) ([]byte, error) { return nil, err } }
	tests := []struct {
		name   string
		export Exporter
		limit  time.Duration
		code   wire.Code
		reason string
	}{
		{"no exporter", nil, patience, wire.CodeNotMovable, "exports no connections"},
		{"never", fail(fmt.Errorf("%w: TLS", ErrNotMovable)), patience, wire.CodeNotMovable, "TLS"},
		{"not now until the limit", fail(ErrNotNow), 30 * time.Millisecond, wire.CodeNotNow, ErrNotNow.Error()},
		{"error", fail(errors.New("disk on fire")), patience, wire.CodeFailed, "disk on fire"},
		{"exporter ignores the limit and waits for the connection itself", func(_ context.Context, c *Conn) ([]byte, error) {
			_, err := c.Read(make([]byte, 1))
			return nil, err
		}, 30 * time.Millisecond, wire.CodeNotNow, ErrNotNow.Error()},
		{"too large", func(context.Context, *Conn) ([]byte, error) {
			return make([]byte, MaxState+1), nil
		}, patience, wire.CodeNotMovable, "67108864"},
		{"exporter closes the connection", func(_ context.Context, c *Conn) ([]byte, error) {
			return nil, c.Close()
		}, patience, wire.CodeNoFlow, "closed"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			path := socketPath(t)
			agent := startAgent(t, path)
			ln := listen(t, path, Config{Export: test.export})
			app := agent.app()
			client, server := connect(t, ln)
			app.send(5, &wire.Export{Flow: server.Flow(), Limit: test.limit})
			m, _ := expect[*wire.Refuse](app, 5)
			if m.Code != test.code || !strings.Contains(m.Reason, test.reason) {
				t.Errorf("refused by %v %q, want %v with %q", m.Code, m.Reason, test.code, test.reason)
			}
			if test.code == wire.CodeNoFlow {
				return
			}
			write(t, client, "xy") // The stuck exporter may take a byte.
			if got := await(t, "read", asyncRead(server, 1)); got.err != nil {
				t.Errorf("afterwards: %v", got.err)
			}
			app.send(6, &wire.Ping{})
			expect[*wire.Pong](app, 6)
		})
	}
}

// TestExportReady: a server that is busy says so, and is asked at its next good point, before it can go on.
func TestExportReady(t *testing.T) {
	path := socketPath(t)
	agent := startAgent(t, path)
	var busy atomic.Bool
	var asked atomic.Int32
	ln := listen(t, path, Config{Export: func(context.Context, *Conn) ([]byte, error) {
		asked.Add(1)
		if busy.Load() {
			return nil, ErrNotNow
		}
		return []byte("at rest"), nil
	}})
	app := agent.app()
	client, server := connect(t, ln)
	server.ExportReady() // Without an export it does nothing.

	busy.Store(true)
	app.send(1, &wire.Export{Flow: server.Flow(), Limit: patience})
	eventually(t, "exporter was asked twice", func() bool { return asked.Load() >= 2 })
	write(t, client, "one")
	if got := await(t, "read of a busy server", asyncRead(server, 10)); got.data != "one" {
		t.Fatalf("read %+v", got)
	}
	write(t, client, "two")
	busy.Store(false)
	server.ExportReady()
	// From here on nothing may be read, although "two" is there.
	parked := asyncRead(server, 10)
	e := app.awaitExported(1, server.Flow())
	if env, err := parseEnvelope(e.state); err != nil || string(env.data) != "at rest" || env.read != 3 {
		t.Errorf("exported %+v, %v; want 3 bytes read", env, err)
	}
	closeFD(e.fd)
	app.send(1, &wire.Resume{})
	if got := await(t, "parked read", parked); got.data != "two" {
		t.Errorf("read %+v", got)
	}
}

// TestExportReadyWhileAsked: the good point comes while the exporter is about to say no.
func TestExportReadyWhileAsked(t *testing.T) {
	path := socketPath(t)
	agent := startAgent(t, path)
	var asked atomic.Int32
	ln := listen(t, path, Config{Export: func(_ context.Context, c *Conn) ([]byte, error) {
		if asked.Add(1) == 1 {
			c.ExportReady()
			return nil, ErrNotNow
		}
		return nil, nil
	}})
	app := agent.app()
	_, server := connect(t, ln)
	pauses := server.pauses.Load()
	e := app.export(1, server.Flow())
	closeFD(e.fd)
	if got := server.pauses.Load() - pauses; got != 1 || asked.Load() != 2 {
		t.Errorf("paused %d times and asked %d times, want 1 and 2", got, asked.Load())
	}
	app.send(1, &wire.Resume{})
}

// TestExportCalledOff: Resume before Exported ends the export, which is not answered.
func TestExportCalledOff(t *testing.T) {
	path := socketPath(t)
	agent := startAgent(t, path)
	asked := make(chan struct{})
	ln := listen(t, path, Config{Export: func(ctx context.Context, _ *Conn) ([]byte, error) {
		close(asked)
		<-ctx.Done()
		return []byte("too late"), nil
	}})
	app := agent.app()
	client, server := connect(t, ln)
	app.send(1, &wire.Export{Flow: server.Flow(), Limit: patience})
	await(t, "exporter", asked)
	app.send(1, &wire.Resume{})
	write(t, client, "x")
	if got := await(t, "read", asyncRead(server, 1)); got.data != "x" {
		t.Errorf("read %+v", got)
	}
	app.send(2, &wire.Ping{})
	expect[*wire.Pong](app, 2)
}

// TestExportTwice: a connection is in one move at a time.
func TestExportTwice(t *testing.T) {
	path := socketPath(t)
	agent := startAgent(t, path)
	ln := listen(t, path, Config{Export: exportNothing})
	app := agent.app()
	_, server := connect(t, ln)
	e := app.export(1, server.Flow())
	app.send(2, &wire.Export{Flow: server.Flow(), Limit: patience})
	if m, _ := expect[*wire.Refuse](app, 2); m.Code != wire.CodeNotNow {
		t.Errorf("refused by %v, want %v", m.Code, wire.CodeNotNow)
	}
	closeFD(e.fd)
	app.send(1, &wire.Resume{})
	e = app.export(3, server.Flow())
	closeFD(e.fd)
	app.send(3, &wire.Resume{})
}

// TestLargeState: State of many frames, and more of it ahead.
func TestLargeState(t *testing.T) {
	const size = 8 << 20
	path := socketPath(t)
	agent := startAgent(t, path)
	source := listen(t, path, Config{
		Export:  func(context.Context, *Conn) ([]byte, error) { return ramp(3, size), nil },
		Prepare: func(context.Context, *Conn) ([]byte, error) { return ramp(5, size+1), nil },
	})
	from := agent.app()
	target := listen(t, path, Config{})
	to := agent.app()
	if !from.register.Preparer || to.register.Preparer || !to.register.Importer {
		t.Errorf("registered as %+v and %+v", from.register, to.register)
	}
	_, server := connect(t, source)
	from.send(1, &wire.Prepare{Flow: server.Flow(), Limit: patience})
	var parts wire.Assembly
	var ahead []byte
	for ahead == nil {
		switch m := from.next().Message.(type) {
		case *wire.Chunk:
			if err := parts.Add(m, MaxState); err != nil {
				t.Fatal(err)
			}
		case *wire.Prepared:
			ahead = parts.Ahead(m.Ahead)
		default:
			t.Fatalf("got %v", m.Kind())
		}
	}
	e := from.export(1, server.Flow())
	to.sendImport(1, e, ahead)
	expect[*wire.Imported](to, 1)
	from.send(1, &wire.Migrated{})
	to.send(1, &wire.Activate{})
	s := acceptConn(t, target).State()
	if string(s.Data) != string(ramp(3, size)) || string(s.Ahead) != string(ramp(5, size+1)) {
		t.Errorf("State of %d and %d bytes came out changed", len(s.Data), len(s.Ahead))
	}
}

func TestPrepareRefused(t *testing.T) {
	path := socketPath(t)
	agent := startAgent(t, path)
	ln := listen(t, path, Config{Export: exportNothing, Prepare: func(context.Context, *Conn) ([]byte, error) {
		return nil, errors.New("nothing prepared")
	}})
	app := agent.app()
	_, server := connect(t, ln)
	app.send(1, &wire.Prepare{Flow: server.Flow()})
	if m, _ := expect[*wire.Refuse](app, 1); m.Code != wire.CodeFailed || m.Reason != "nothing prepared" {
		t.Errorf("refused by %v %q", m.Code, m.Reason)
	}
	_ = server.Close()
	app.send(2, &wire.Prepare{Flow: server.Flow()})
	if m, _ := expect[*wire.Refuse](app, 2); m.Code != wire.CodeNoFlow {
		t.Errorf("refused by %v, want %v", m.Code, wire.CodeNoFlow)
	}
}
