// SPDX-License-Identifier: Apache-2.0

package handoff

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/net/nettest"

	"github.com/rehome-net/rehome/handoff/wire"
)

// TestNetConn runs the standard conformance test of net.Conn, while the connections are paused and resumed all the time.
func TestNetConn(t *testing.T) {
	for _, moving := range []bool{false, true} {
		t.Run(map[bool]string{false: "resting", true: "paused again and again"}[moving], func(t *testing.T) {
			path := socketPath(t)
			agent := startAgent(t, path)
			ln := listen(t, path, Config{Export: exportNothing})
			app := agent.app()
			nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
				client, server := connect(t, ln)
				_ = client.SetDeadline(time.Time{})
				done, ended := make(chan struct{}), make(chan struct{})
				go func() {
					defer close(ended)
					for id := uint64(1); moving; id++ {
						select {
						case <-done:
							return
						case <-time.After(time.Millisecond):
						}
						if app.link.Send(id, &wire.Export{Flow: server.Flow(), Limit: patience}) != nil {
							return
						}
						if r, ok := <-app.frames; ok && r.fd >= 0 {
							closeFD(r.fd)
							_ = app.link.Send(id, &wire.Resume{})
						}
					}
				}()
				return client, server, func() {
					close(done)
					<-ended
					_ = client.Close()
					_ = server.Close()
				}, nil
			})
		})
	}
}

// TestReadFrom sends files, parts of files and things that are no files, paused again and again, with a slow reader.
func TestReadFrom(t *testing.T) {
	const size = 6<<20 + 77
	file := filepath.Join(t.TempDir(), "ramp")
	if err := os.WriteFile(file, ramp(0, size), 0o600); err != nil {
		t.Fatal(err)
	}
	open := func() *os.File {
		f, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
		return f
	}
	tests := []struct {
		name   string
		source func() (io.Reader, func() int64)
		skip   uint64
		want   int
	}{
		{"file", func() (io.Reader, func() int64) { f := open(); return f, tell(t, f) }, 0, size},
		{"rest of a file", func() (io.Reader, func() int64) {
			f := open()
			_, _ = f.Seek(1000, io.SeekStart)
			return f, tell(t, f)
		}, 1000, size - 1000},
		{"part of a file", func() (io.Reader, func() int64) {
			f := open()
			lr := &io.LimitedReader{R: f, N: size - 5}
			return lr, func() int64 { return size - 5 - lr.N }
		}, 0, size - 5},
		{"more than the file", func() (io.Reader, func() int64) {
			f := open()
			return &io.LimitedReader{R: f, N: size * 2}, tell(t, f)
		}, 0, size},
		{"nothing of a file", func() (io.Reader, func() int64) {
			f := open()
			return &io.LimitedReader{R: f, N: 0}, tell(t, f)
		}, 0, 0},
		{"no file", func() (io.Reader, func() int64) { return bytes.NewReader(ramp(0, size)), nil }, 0, size},
		{"pipe", func() (io.Reader, func() int64) {
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			go func() {
				_, _ = w.Write(ramp(0, size))
				_ = w.Close()
			}()
			t.Cleanup(func() { _ = r.Close() })
			return r, nil
		}, 0, size},
	}
	path := socketPath(t)
	agent := startAgent(t, path)
	ln := listen(t, path, Config{Export: exportNothing})
	app := agent.app()
	id := uint64(0)
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			client, server := connect(t, ln)
			source, position := test.source()
			type result struct {
				n   int64
				err error
			}
			done := make(chan result, 1)
			go func() {
				n, err := io.Copy(server, source)
				done <- result{n, err}
			}()
			for read := 0; read < test.want; {
				closeFD(app.export(id, server.Flow()).fd)
				app.send(id, &wire.Resume{})
				id++
				n := min(test.want-read, 700_001)
				if err := checkRamp(client, test.skip+uint64(read), n); err != nil {
					select {
					case r := <-done:
						t.Errorf("the copy ended after %d bytes: %v", r.n, r.err)
					default:
					}
					t.Fatal(err)
				}
				read += n
			}
			r := await(t, "copy", done)
			if r.err != nil || r.n != int64(test.want) || server.BytesWritten() != uint64(test.want) {
				t.Errorf("copied %d, %v, BytesWritten %d; want %d", r.n, r.err, server.BytesWritten(), test.want)
			}
			if position != nil && position() != int64(test.skip)+int64(test.want) {
				t.Errorf("the source stands at %d, want %d", position(), int64(test.skip)+int64(test.want))
			}
		})
	}
}

func tell(t testing.TB, f *os.File) func() int64 {
	return func() int64 {
		n, err := f.Seek(0, io.SeekCurrent)
		if err != nil {
			t.Error(err)
		}
		return n
	}
}

// TestReadFromMigrated: what had been sent of a file is told exactly, and its offset stands there.
func TestReadFromMigrated(t *testing.T) {
	const size = 16 << 20
	file := filepath.Join(t.TempDir(), "ramp")
	if err := os.WriteFile(file, ramp(0, size), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	path := socketPath(t)
	agent := startAgent(t, path)
	source := listen(t, path, Config{Export: exportNothing})
	from := agent.app()
	target := listen(t, path, Config{})
	to := agent.app()
	client, server := connect(t, source)
	done := make(chan error, 1)
	var sent int64
	go func() {
		var err error
		sent, err = server.ReadFrom(f)
		done <- err
	}()
	if err := checkRamp(client, 0, 1<<20); err != nil {
		t.Fatal(err)
	}
	untilBlocked(t, &server.writing)
	migrate(from, to, 1, server.Flow())
	if err := await(t, "copy", done); !errors.Is(err, ErrMigrated) {
		t.Fatalf("copy returned %v, want ErrMigrated", err)
	}
	moved := acceptConn(t, target)
	if at := tell(t, f)(); sent != at || moved.BytesWritten() != uint64(at) {
		t.Errorf("sent %d, file stands at %d, BytesWritten %d", sent, at, moved.BytesWritten())
	}
	go func() {
		_, err := moved.ReadFrom(f)
		done <- err
	}()
	if err := checkRamp(client, 1<<20, size-1<<20); err != nil {
		t.Fatal(err)
	}
	if err := await(t, "rest", done); err != nil {
		t.Fatal(err)
	}
}

// TestUpload: what the client sends arrives whole while the connection moves to and fro under a server that
// hashes what it reads.
func TestUpload(t *testing.T) {
	const size = 24 << 20
	path := socketPath(t)
	agent := startAgent(t, path)
	cfg := Config{Export: exportNothing}
	listeners := []*Listener{listen(t, path, cfg)}
	apps := []*fakeApp{agent.app()}
	listeners = append(listeners, listen(t, path, cfg))
	apps = append(apps, agent.app())
	client, server := connect(t, listeners[0])
	go func() {
		_, _ = client.Write(ramp(0, size))
		_ = client.CloseWrite()
	}()
	hash := sha256.New()
	moves := uint64(0)
	for ended := false; !ended; moves++ {
		got := make(chan error, 1)
		go func() {
			_, err := io.Copy(hash, server)
			got <- err
		}()
		if moves == 10 {
			if err := await(t, "end of the upload", got); err != nil {
				t.Fatal(err)
			}
			break
		}
		before := server.BytesRead()
		eventually(t, "progress", func() bool { return server.BytesRead() >= min(before+size/20, size) })
		migrate(apps[moves%2], apps[1-moves%2], moves, server.Flow())
		err := await(t, "copy", got)
		if ended = err == nil; !ended {
			if !errors.Is(err, ErrMigrated) {
				t.Fatal(err)
			}
		}
		server = acceptConn(t, listeners[1-moves%2])
		ended = false
	}
	if want := sha256.Sum256(ramp(0, size)); !bytes.Equal(hash.Sum(nil), want[:]) || server.BytesRead() != size {
		t.Errorf("%d of %d bytes arrived, or changed ones", server.BytesRead(), size)
	}
}

func TestOptions(t *testing.T) {
	path := socketPath(t)
	agent := startAgent(t, path)
	ln := listen(t, path, Config{Export: exportNothing})
	app := agent.app()
	client, server := connect(t, ln)
	calls := map[string]func() error{
		"SetNoDelay":         func() error { return server.SetNoDelay(false) },
		"SetLinger":          func() error { return server.SetLinger(-1) },
		"SetKeepAlive":       func() error { return server.SetKeepAlive(true) },
		"SetKeepAlivePeriod": func() error { return server.SetKeepAlivePeriod(time.Minute) },
		"SetKeepAliveConfig": func() error { return server.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true}) },
		"SetReadBuffer":      func() error { return server.SetReadBuffer(1 << 16) },
		"SetWriteBuffer":     func() error { return server.SetWriteBuffer(1 << 16) },
		"CloseRead":          func() error { return server.CloseRead() },
		"CloseWrite":         func() error { return server.CloseWrite() },
	}
	closeFD(app.export(1, server.Flow()).fd)
	done := make(chan string, len(calls))
	for name, call := range calls {
		go func() {
			if err := call(); err != nil {
				name += ": " + err.Error()
			}
			done <- name
		}()
	}
	select {
	case name := <-done:
		t.Errorf("%s did not wait for the move", name)
	case <-time.After(20 * time.Millisecond):
	}
	app.send(1, &wire.Resume{})
	for range calls {
		if name := await(t, "options", done); calls[name] == nil {
			t.Error(name)
		}
	}
	if _, err := client.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("client read %v, want EOF", err)
	}
}

// TestRawConn: raw reads wait out a move as well.
func TestRawConn(t *testing.T) {
	path := socketPath(t)
	agent := startAgent(t, path)
	ln := listen(t, path, Config{Export: exportNothing})
	app := agent.app()
	client, server := connect(t, ln)
	raw, err := server.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan error, 1)
	go func() {
		got <- raw.Read(func(fd uintptr) bool { return unread(t, int(fd)) > 0 })
	}()
	untilBlocked(t, &server.reading)
	closeFD(app.export(1, server.Flow()).fd)
	write(t, client, "x")
	select {
	case err := <-got:
		t.Fatalf("raw read returned %v during the move", err)
	case <-time.After(20 * time.Millisecond):
	}
	app.send(1, &wire.Resume{})
	if err := await(t, "raw read", got); err != nil {
		t.Error(err)
	}
	if err := raw.Write(func(uintptr) bool { return true }); err != nil {
		t.Error(err)
	}
	closeFD(app.export(2, server.Flow()).fd)
	app.send(2, &wire.Migrated{})
	for name, f := range map[string]func() error{
		"Control": func() error { return raw.Control(func(uintptr) {}) },
		"Read":    func() error { return raw.Read(func(uintptr) bool { return true }) },
		"Write":   func() error { return raw.Write(func(uintptr) bool { return true }) },
	} {
		if err := f(); !errors.Is(err, ErrMigrated) {
			t.Errorf("%s after the move: %v, want ErrMigrated", name, err)
		}
	}
}
