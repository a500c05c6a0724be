// SPDX-License-Identifier: Apache-2.0

package handoff_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strings"
	"sync"

	"github.com/rehome-net/rehome/handoff"
)

// An echo server that numbers its lines. Its State is the number and the line begun.
func ExampleListen() {
	ln, err := handoff.Listen(context.Background(), "tcp", "127.0.0.1:0", handoff.Config{
		Service: "echo",
		Export: func(_ context.Context, c *handoff.Conn) ([]byte, error) {
			s, ok := c.Value().(*counter)
			if !ok {
				return nil, handoff.ErrNotNow // It has only just been accepted.
			}
			return s.export(c)
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			c, err := ln.AcceptConn()
			if err != nil {
				return
			}
			s := &counter{consumed: c.BytesRead()}
			_, _ = fmt.Sscan(string(c.State().Data), &s.lines)
			c.SetValue(s)
			go func() {
				defer c.Close()
				s.serve(c)
			}()
		}
	}()

	conn, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	answers := bufio.NewReader(conn)
	for _, line := range []string{"hello", "world"} {
		fmt.Fprintln(conn, line)
		answer, _ := answers.ReadString('\n')
		fmt.Print(answer)
	}
	// Output:
	// 1 hello
	// 2 world
}

// counter is what the server knows of one connection.
type counter struct {
	mu       sync.Mutex
	lines    int
	consumed uint64 // bytes of the lines that have been answered, on all hosts
}

func (s *counter) serve(c *handoff.Conn) {
	lines := bufio.NewReader(c)
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			return
		}
		s.mu.Lock()
		s.lines++
		_, err = fmt.Fprintf(c, "%d %s", s.lines, line)
		s.consumed += uint64(len(line))
		s.mu.Unlock()
		if err != nil {
			return
		}
		c.ExportReady()
	}
}

// export gives the State only between lines: not while one is being answered, nor while part of one has been read.
func (s *counter) export(c *handoff.Conn) ([]byte, error) {
	if !s.mu.TryLock() {
		return nil, handoff.ErrNotNow
	}
	defer s.mu.Unlock()
	if c.BytesRead() != s.consumed {
		return nil, handoff.ErrNotNow
	}
	return fmt.Append(nil, s.lines), nil
}

// A web server needs no State: its connections move between requests.
func ExampleHTTP() {
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, "hello")
	})}
	ln, err := handoff.Listen(context.Background(), "tcp", "127.0.0.1:0", handoff.HTTP(srv, handoff.Config{Service: "web"}))
	if err != nil {
		log.Fatal(err)
	}
	go func() { _ = srv.Serve(ln) }()
	defer srv.Close()

	resp, err := http.Get("http://" + ln.Addr().String())
	if err != nil {
		log.Fatal(err)
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	fmt.Println(string(body))
	// Output: hello
}

// A listener that exists already, here one of IPv4 only.
func ExampleWrap() {
	lc := net.ListenConfig{}
	lc.SetMultipathTCP(false) // Such connections do not move.
	inner, err := lc.Listen(context.Background(), "tcp4", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	ln, err := handoff.Wrap(inner.(*net.TCPListener), handoff.Config{Service: "echo"})
	if err != nil {
		log.Fatal(err)
	}
	defer ln.Close()
	fmt.Println(ln.Registered()) // No agent has been reached yet.
	// Output: false
}

// Large State goes ahead, while the connection is being served; what changed since follows with the connection.
func ExamplePreparer() {
	history := []string{"a long", "conversation"}
	cfg := handoff.Config{
		Service: "chat",
		Prepare: func(context.Context, *handoff.Conn) ([]byte, error) {
			return []byte(strings.Join(history, "\n")), nil
		},
		Export: func(context.Context, *handoff.Conn) ([]byte, error) {
			return []byte("what was said since"), nil
		},
		Import: func(_ context.Context, _ *handoff.Conn, s handoff.State) error {
			if len(s.Ahead) == 0 && len(s.Data) == 0 {
				return errors.New("a conversation without history")
			}
			return nil
		},
	}
	fmt.Println(cfg.Import(context.Background(), nil, handoff.State{}))
	// Output: a conversation without history
}

// A server that streams a file says how far the client is by Conn.BytesWritten alone, so it can move at any time.
func ExampleExporter() {
	var export handoff.Exporter = func(_ context.Context, c *handoff.Conn) ([]byte, error) {
		if c.BytesRead() == 0 {
			return nil, nil // The client has not asked for anything yet.
		}
		return []byte("name of the file"), nil // The other host goes on at its BytesWritten.
	}
	_ = handoff.Config{Service: "files", Export: export}
}

// After a move a connection's calls fail by ErrMigrated: the server lets go of it.
func ExampleConn_Read() {
	serve := func(c *handoff.Conn) {
		defer c.Close()
		_, err := io.Copy(io.Discard, c)
		if errors.Is(err, handoff.ErrMigrated) {
			return // Another host goes on with it.
		}
		if err != nil {
			log.Print(err)
		}
	}
	_ = serve
}
