// SPDX-License-Identifier: Apache-2.0

package handoff

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rehome-net/rehome/handoff/wire"
)

// exportNothing is the exporter of a server whose connections have no State.
func exportNothing(context.Context, *Conn) ([]byte, error) { return nil, nil }

// asyncRead reads in the background.
func asyncRead(c net.Conn, n int) <-chan readResult {
	got := make(chan readResult, 1)
	go func() {
		b := make([]byte, n)
		k, err := c.Read(b)
		got <- readResult{string(b[:k]), err}
	}()
	return got
}

type readResult struct {
	data string
	err  error
}

func await[T any](t testing.TB, what string, ch <-chan T) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(patience):
		t.Fatalf("still waiting for %s", what)
		panic("unreachable")
	}
}

// untilBlocked waits until a call is inside the lane, where only the network can end it.
func untilBlocked(t testing.TB, l *lane) {
	t.Helper()
	eventually(t, "call is inside", func() bool { return l.calls.Load() == 1 })
}

func TestMoveWhileBlockedInRead(t *testing.T) {
	path := socketPath(t)
	agent := startAgent(t, path)
	source := listen(t, path, Config{Export: func(context.Context, *Conn) ([]byte, error) {
		return []byte("after hello"), nil
	}})
	from := agent.app()
	target := listen(t, path, Config{})
	to := agent.app()

	client, server := connect(t, source)
	write(t, client, "hello")
	if got := await(t, "hello", asyncRead(server, 100)); got.data != "hello" {
		t.Fatalf("read %+v", got)
	}
	blocked := asyncRead(server, 100)
	untilBlocked(t, &server.reading)
	migrate(from, to, 7, server.Flow())

	if got := await(t, "parked read", blocked); got.data != "" || !errors.Is(got.err, ErrMigrated) {
		t.Errorf("parked read returned %+v, want ErrMigrated", got)
	}
	var nerr net.Error
	if _, err := server.Read(make([]byte, 1)); !errors.Is(err, ErrMigrated) || !errors.As(err, &nerr) || nerr.Timeout() {
		t.Errorf("later read: %v, want ErrMigrated in a net.Error that is no timeout", err)
	}
	if _, err := server.Write([]byte("x")); !errors.Is(err, ErrMigrated) {
		t.Errorf("later write: %v, want ErrMigrated", err)
	}
	if err := server.Close(); err != nil {
		t.Errorf("close after the move: %v", err)
	}

	moved := acceptConn(t, target)
	if !moved.Imported() || server.Imported() {
		t.Error("Imported is wrong")
	}
	if diff := cmp.Diff(State{Data: []byte("after hello")}, moved.State()); diff != "" {
		t.Errorf("State (-want +got):\n%s", diff)
	}
	if moved.BytesRead() != 5 || moved.BytesWritten() != 0 {
		t.Errorf("counts %d, %d; want 5, 0", moved.BytesRead(), moved.BytesWritten())
	}
	write(t, client, "world")
	if got := await(t, "world", asyncRead(moved, 100)); got.data != "world" {
		t.Errorf("read %+v", got)
	}
	if moved.BytesRead() != 10 {
		t.Errorf("BytesRead %d, want 10", moved.BytesRead())
	}
	if moved.LocalAddr().String() != server.LocalAddr().String() || moved.RemoteAddr().String() != client.LocalAddr().String() {
		t.Errorf("addresses %v, %v", moved.LocalAddr(), moved.RemoteAddr())
	}
}

func write(t testing.TB, c net.Conn, s string) {
	t.Helper()
	if _, err := io.WriteString(c, s); err != nil {
		t.Fatal(err)
	}
}

// TestResume: a call that was parked goes on as if nothing had happened.
func TestResume(t *testing.T) {
	path := socketPath(t)
	agent := startAgent(t, path)
	ln := listen(t, path, Config{Export: exportNothing})
	app := agent.app()
	client, server := connect(t, ln)
	blocked := asyncRead(server, 100)
	untilBlocked(t, &server.reading)
	for id := range uint64(20) {
		e := app.export(id, server.Flow())
		if got := server.BytesRead(); got != id {
			t.Fatalf("BytesRead %d, want %d", got, id)
		}
		write(t, client, "x") // Not to be taken while exported.
		if n := unread(t, e.fd); n > 1 {
			t.Fatalf("%d bytes in the socket", n)
		}
		select {
		case got := <-blocked:
			t.Fatalf("read during the export returned %+v", got)
		default:
		}
		closeFD(e.fd)
		app.send(id, &wire.Resume{Reason: "test"})
		if got := await(t, "read after resume", blocked); got.data != "x" || got.err != nil {
			t.Fatalf("read after resume returned %+v", got)
		}
		blocked = asyncRead(server, 100)
	}
	write(t, client, "end")
	await(t, "last read", blocked)
}

// TestMoveWhileBlockedInWrite moves a connection whose server is stuck in a Write, there and back and there, and
// checks every byte that the client gets. The server at each place goes on at BytesWritten, as servers do.
func TestMoveWhileBlockedInWrite(t *testing.T) {
	const total = 24 << 20
	path := socketPath(t)
	agent := startAgent(t, path)
	cfg := Config{Export: exportNothing}
	listeners := []*Listener{listen(t, path, cfg), listen(t, path, cfg)}
	apps := []*fakeApp{agent.app(), agent.app()}
	if apps[0].register.Address != listeners[0].Addr().String() {
		apps[0], apps[1] = apps[1], apps[0]
	}

	client, server := connect(t, listeners[0])
	serve := func(c *Conn) <-chan error {
		done := make(chan error, 1)
		from := c.BytesWritten()
		go func() {
			n, err := c.Write(ramp(from, total-int(from)))
			if got := c.BytesWritten() - from; got != uint64(n) {
				err = errors.Join(err, errors.New("Write's count is not BytesWritten's"))
			}
			done <- err
		}()
		return done
	}
	done := serve(server)
	read := 0
	for id := range uint64(12) {
		untilBlocked(t, &server.writing)
		switch id % 3 {
		case 0: // The move fails: the Write goes on.
			e := apps[id/3%2].export(id, server.Flow())
			closeFD(e.fd)
			apps[id/3%2].send(id, &wire.Resume{})
		case 2:
			here, there := apps[id/3%2], apps[1-id/3%2]
			migrate(here, there, id, server.Flow())
			if err := await(t, "write that was moved away", done); !errors.Is(err, ErrMigrated) {
				t.Fatalf("write returned %v, want ErrMigrated", err)
			}
			server = acceptConn(t, listeners[1-id/3%2])
			done = serve(server)
		}
		if err := checkRamp(client, uint64(read), 300_000+int(id)); err != nil {
			t.Fatal(err)
		}
		read += 300_000 + int(id)
	}
	if err := checkRamp(client, uint64(read), total-read); err != nil {
		t.Fatal(err)
	}
	if err := await(t, "last write", done); err != nil {
		t.Fatal(err)
	}
	if server.BytesWritten() != total {
		t.Errorf("BytesWritten %d, want %d", server.BytesWritten(), total)
	}
}

// TestConcurrentWrites: two Writes that a move interrupts do not mix.
func TestConcurrentWrites(t *testing.T) {
	path := socketPath(t)
	agent := startAgent(t, path)
	ln := listen(t, path, Config{Export: exportNothing})
	app := agent.app()
	client, server := connect(t, ln)
	const size, writers = 6 << 20, 3
	done := make(chan error, writers)
	for i := range writers {
		go func() {
			_, err := server.Write(bytes.Repeat([]byte{byte('a' + i)}, size))
			done <- err
		}()
	}
	var got [writers]int
	var last byte
	changes := 0
	buf := make([]byte, 128<<10)
	for id, n := uint64(1), 0; n < writers*size; {
		k, err := client.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range buf[:k] {
			got[b-'a']++
			if b != last {
				changes++
			}
			last = b
		}
		if n += k; n/(1<<20) != (n-k)/(1<<20) {
			e := app.export(id, server.Flow())
			closeFD(e.fd)
			app.send(id, &wire.Resume{})
			id++
		}
	}
	for range writers {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if want := [writers]int{size, size, size}; got != want || changes != writers {
		t.Errorf("bytes %v in %d runs, want %v in %d", got, changes, want, writers)
	}
}

func TestDeadlines(t *testing.T) {
	path := socketPath(t)
	agent := startAgent(t, path)
	ln := listen(t, path, Config{Export: exportNothing})
	app := agent.app()
	client, server := connect(t, ln)

	t.Run("kept over a move", func(t *testing.T) {
		start := time.Now()
		_ = server.SetReadDeadline(start.Add(200 * time.Millisecond))
		blocked := asyncRead(server, 10)
		untilBlocked(t, &server.reading)
		e := app.export(1, server.Flow())
		closeFD(e.fd)
		app.send(1, &wire.Resume{})
		got := await(t, "deadline", blocked)
		if took := time.Since(start); !errors.Is(got.err, os.ErrDeadlineExceeded) || took < 200*time.Millisecond {
			t.Errorf("read returned %v after %v, want a timeout after 200 ms", got.err, took)
		}
	})
	t.Run("passes while parked", func(t *testing.T) {
		e := app.export(2, server.Flow())
		_ = server.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		if got := await(t, "deadline", asyncRead(server, 10)); !errors.Is(got.err, os.ErrDeadlineExceeded) {
			t.Errorf("read returned %+v, want a timeout", got)
		}
		closeFD(e.fd)
		app.send(2, &wire.Resume{})
	})
	t.Run("set while parked", func(t *testing.T) {
		_ = server.SetDeadline(time.Time{})
		e := app.export(3, server.Flow())
		blocked := asyncRead(server, 10)
		eventually(t, "parked", func() bool { server.mu.Lock(); defer server.mu.Unlock(); return server.wake != nil })
		_ = server.SetReadDeadline(time.Unix(1, 0))
		if got := await(t, "deadline", blocked); !errors.Is(got.err, os.ErrDeadlineExceeded) {
			t.Errorf("read returned %+v, want a timeout", got)
		}
		closeFD(e.fd)
		app.send(3, &wire.Resume{})
		// Taken back, it leaves nothing behind.
		_ = server.SetReadDeadline(time.Time{})
		write(t, client, "x")
		if got := await(t, "read", asyncRead(server, 10)); got.data != "x" {
			t.Errorf("read returned %+v", got)
		}
	})
}

func TestClose(t *testing.T) {
	path := socketPath(t)
	agent := startAgent(t, path)
	ln := listen(t, path, Config{Export: exportNothing})
	app := agent.app()

	t.Run("honoured after Resume", func(t *testing.T) {
		client, server := connect(t, ln)
		e := app.export(1, server.Flow())
		blocked := asyncRead(server, 10)
		if err := server.Close(); err != nil {
			t.Fatal(err)
		}
		if got := await(t, "read", blocked); !errors.Is(got.err, net.ErrClosed) {
			t.Errorf("parked read: %v, want closed", got.err)
		}
		_ = client.SetReadDeadline(time.Now().Add(30 * time.Millisecond))
		if _, err := client.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("client read %v while the connection was the agent's, want a timeout", err)
		}
		closeFD(e.fd)
		app.send(1, &wire.Resume{})
		_ = client.SetReadDeadline(time.Now().Add(patience))
		if _, err := client.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("client read %v, want EOF", err)
		}
		if err := server.Close(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("second close: %v, want net.ErrClosed", err)
		}
	})
	t.Run("silent after Migrated", func(t *testing.T) {
		client, server := connect(t, ln)
		e := app.export(2, server.Flow())
		defer closeFD(e.fd) // Stands for the connection at its new host.
		_ = server.Close()
		app.send(2, &wire.Migrated{})
		eventually(t, "forgotten", func() bool { return ln.find(server.Flow()) == nil })
		_ = client.SetReadDeadline(time.Now().Add(30 * time.Millisecond))
		if _, err := client.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("client read %v, want a timeout", err)
		}
	})
	t.Run("unknown afterwards", func(t *testing.T) {
		_, server := connect(t, ln)
		_ = server.Close()
		app.send(3, &wire.Export{Flow: server.Flow()})
		if m, _ := expect[*wire.Refuse](app, 3); m.Code != wire.CodeNoFlow {
			t.Errorf("refused by %v, want %v", m.Code, wire.CodeNoFlow)
		}
	})
}
