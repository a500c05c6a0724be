// SPDX-License-Identifier: Apache-2.0

package handoff

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rehome-net/rehome/handoff/wire"
)

// TestAgentDiesBeforeExported: nothing was given away, the connection goes on at once.
func TestAgentDiesBeforeExported(t *testing.T) {
	path := socketPath(t)
	agent := startAgent(t, path)
	asked := make(chan struct{}, 1)
	ln := listen(t, path, Config{Export: func(ctx context.Context, _ *Conn) ([]byte, error) {
		asked <- struct{}{}
		<-ctx.Done()
		return nil, ctx.Err()
	}})
	app := agent.app()
	client, server := connect(t, ln)
	blocked := asyncRead(server, 10)
	app.send(1, &wire.Export{Flow: server.Flow(), Limit: time.Hour})
	await(t, "exporter", asked)
	agent.kill()
	write(t, client, "on")
	if got := await(t, "read", blocked); got.data != "on" || got.err != nil {
		t.Errorf("read %+v", got)
	}
	next := startAgent(t, path)
	app = next.app()
	app.send(2, &wire.Ping{})
	expect[*wire.Pong](app, 2) // And no Recover before it.
}

// TestAgentDiesAfterExported: the next agent is asked, as often as agents die, and its answer counts.
func TestAgentDiesAfterExported(t *testing.T) {
	tests := []struct {
		name   string
		answer wire.Message
		want   error
	}{
		{"it stayed", &wire.Resume{}, nil},
		{"it moved", &wire.Migrated{}, ErrMigrated},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			path := socketPath(t)
			agent := startAgent(t, path)
			ln := listen(t, path, Config{Export: exportNothing})
			app := agent.app()
			client, server := connect(t, ln)
			e := app.export(77, server.Flow())
			socket := inode(t, e.fd)
			closeFD(e.fd)
			blocked := asyncRead(server, 10)
			write(t, client, "on")
			for range 3 {
				agent.kill()
				agent = startAgent(t, path)
				app = agent.app()
				m, fd := expect[*wire.Recover](app, 77)
				want := &wire.Recover{Flow: server.Flow(), Service: "test", Epoch: 1, Peer: "b"}
				if diff := cmp.Diff(want, m, cmp.Comparer(sameAddr)); diff != "" {
					t.Errorf("Recover (-want +got):\n%s", diff)
				}
				if inode(t, fd) != socket {
					t.Error("Recover came with another socket")
				}
				closeFD(fd)
			}
			// An agent that cannot tell is asked again.
			app.send(77, &wire.Refuse{Code: wire.CodeBusy})
			_, fd := expect[*wire.Recover](app, 77)
			closeFD(fd)
			select {
			case got := <-blocked:
				t.Fatalf("read returned %+v before anybody knew the owner", got)
			default:
			}
			app.send(77, test.answer)
			got := await(t, "parked read", blocked)
			if !errors.Is(got.err, test.want) || test.want == nil && got.data != "on" {
				t.Errorf("read %+v, want %v", got, test.want)
			}
		})
	}
}

// TestNoAgentComesBack: the connection ends, by an error that tells why.
func TestNoAgentComesBack(t *testing.T) {
	path := socketPath(t)
	agent := startAgent(t, path)
	ln := listen(t, path, Config{Export: exportNothing, RecoverTimeout: 50 * time.Millisecond})
	app := agent.app()
	client, server := connect(t, ln)
	e := app.export(1, server.Flow())
	blocked := asyncRead(server, 10)
	closeFD(e.fd)
	agent.kill()
	if got := await(t, "parked read", blocked); !errors.Is(got.err, ErrAbandoned) {
		t.Errorf("parked read: %v, want ErrAbandoned", got.err)
	}
	if _, err := client.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("client read %v, want the end", err)
	}
	if err := server.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	// Another agent hears nothing of it.
	app = startAgent(t, path).app()
	app.send(2, &wire.List{})
	if m, _ := expect[*wire.Flows](app, 2); len(m.Flows) != 0 || !m.Last {
		t.Errorf("listed %+v", m)
	}
}

// startImport starts two listeners and an import at the second, up to Imported.
func startImport(t *testing.T, path string, agent *fakeAgent, cfg Config) (target *Listener, client *net.TCPConn, server *Conn, to *fakeApp) {
	t.Helper()
	source := listen(t, path, Config{Export: exportNothing})
	from := agent.app()
	target = listen(t, path, cfg)
	to = agent.app()
	client, server = connect(t, source)
	e := from.export(9, server.Flow())
	e.late = true
	to.sendImport(9, e, []byte("early"))
	from.send(9, &wire.Migrated{})
	from.send(10, &wire.Ping{})
	expect[*wire.Pong](from, 10) // It has seen Migrated.
	return target, client, server, to
}

// TestAgentDiesAfterImported: the connection is served, or not, as the next agent says.
func TestAgentDiesAfterImported(t *testing.T) {
	for _, activate := range []bool{true, false} {
		t.Run(map[bool]string{true: "activate", false: "withdraw"}[activate], func(t *testing.T) {
			path := socketPath(t)
			agent := startAgent(t, path)
			target, client, server, to := startImport(t, path, agent, Config{Service: "test"})
			expect[*wire.Imported](to, 9)
			agent.kill()
			agent = startAgent(t, path)
			a, b := agent.app(), agent.app()
			if a.register.Address != target.Addr().String() {
				a, b = b, a
			}
			m, fd := expect[*wire.Recover](a, 9)
			want := &wire.Recover{Flow: server.Flow(), Service: "test", Epoch: 1, Target: true, Late: true}
			if diff := cmp.Diff(want, m, cmp.Comparer(sameAddr)); diff != "" {
				t.Errorf("Recover (-want +got):\n%s", diff)
			}
			closeFD(fd)
			if !activate {
				a.send(9, &wire.Withdraw{})
				if _, err := client.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
					t.Errorf("client read %v: somebody still has the socket", err)
				}
				return
			}
			a.send(9, &wire.Activate{})
			c := acceptConn(t, target)
			write(t, client, "on")
			if got := await(t, "read", asyncRead(c, 10)); got.data != "on" {
				t.Errorf("read %+v", got)
			}
			a.send(10, &wire.List{})
			if m, _ := expect[*wire.Flows](a, 10); len(m.Flows) != 1 || m.Flows[0].Epoch != 2 {
				t.Errorf("listed %+v, want one connection of epoch 2", m.Flows)
			}
			_ = b
		})
	}
}

// TestAgentDiesBeforeImported: the import is forgotten, and its socket with it.
func TestAgentDiesBeforeImported(t *testing.T) {
	path := socketPath(t)
	agent := startAgent(t, path)
	asked := make(chan error)
	_, client, _, _ := startImport(t, path, agent, Config{Import: func(ctx context.Context, _ *Conn, _ State) error {
		asked <- nil
		<-ctx.Done()
		asked <- ctx.Err()
		return nil
	}})
	await(t, "importer", asked)
	agent.kill()
	if err := await(t, "importer's end", asked); !errors.Is(err, context.Canceled) {
		t.Errorf("the importer's context ended by %v", err)
	}
	if _, err := client.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("client read %v: somebody still has the socket", err)
	}
}

// TestCloseListenerDuringMove: a closed listener finishes its moves, even with an agent it has yet to meet.
func TestCloseListenerDuringMove(t *testing.T) {
	path := socketPath(t)
	agent := startAgent(t, path)
	ln := listen(t, path, Config{Export: exportNothing})
	app := agent.app()
	client, server := connect(t, ln)
	e := app.export(1, server.Flow())
	closeFD(e.fd)
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
	agent.kill()
	agent = startAgent(t, path)
	eventually(t, "application is back", func() bool {
		agent.mu.Lock()
		defer agent.mu.Unlock()
		return len(agent.all) == 1
	})
	app = agent.all[0] // It does not register.
	_, fd := expect[*wire.Recover](app, 1)
	closeFD(fd)
	app.send(1, &wire.Resume{})
	write(t, client, "on")
	if got := await(t, "read", asyncRead(server, 10)); got.data != "on" {
		t.Errorf("read %+v", got)
	}
	await(t, "end of the link", app.done)
}
