// SPDX-License-Identifier: Apache-2.0

package scenario_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"

	netnslab "github.com/rehome-net/rehome/netns-lab"
)

// traffic is a client's connection that transfers something over a time that the test decides: slowly, until it is to hurry.
type traffic struct {
	name string
	// v6 connects over IPv6.
	v6 bool
	// still transfers nothing until it is to hurry.
	still bool
	// run transfers everything through the connection, paced by t, and checks it.
	run func(t *traffic, conn *net.TCPConn) error

	moved atomic.Int64 // bytes so far
	hurry chan struct{}
	done  chan error
	conn  *net.TCPConn
	ended atomic.Bool
}

// pieceTime is the time between two pieces of a slow transfer.
const pieceTime = 2 * time.Millisecond

// step counts a piece, and waits as long as there is time.
func (t *traffic) step(n int) {
	t.moved.Add(int64(n))
	select {
	case <-t.hurry:
	case <-time.After(pieceTime):
	}
}

func (t *traffic) hurried() bool {
	select {
	case <-t.hurry:
		return true
	default:
		return false
	}
}

// start connects and starts the transfer.
func (t *traffic) start(ctx context.Context, dial func(ctx context.Context, v6 bool) (*net.TCPConn, error)) (err error) {
	t.hurry, t.done = make(chan struct{}), make(chan error, 1)
	if t.conn, err = dial(ctx, t.v6); err != nil {
		return err
	}
	if err := t.conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return err
	}
	go func() {
		err := t.run(t, t.conn)
		t.ended.Store(true)
		t.done <- err
	}()
	return nil
}

// awaitProgress waits until the transfer has gone on.
func (t *traffic) awaitProgress(ctx context.Context) error {
	if t.still {
		return nil
	}
	for before := t.moved.Load(); t.moved.Load() < before+2; {
		if t.ended.Load() {
			return fmt.Errorf("%s has ended early, after %d bytes: %w", t.name, t.moved.Load(), <-t.done)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s stands still at %d bytes: %w", t.name, t.moved.Load(), ctx.Err())
		case <-time.After(time.Millisecond):
		}
	}
	return nil
}

// finish lets the transfer hurry and returns how it ended, and the kernel's counts.
func (t *traffic) finish() (netnslab.TCPInfo, error) {
	close(t.hurry)
	err := <-t.done
	info, ierr := netnslab.ReadTCPInfo(t.conn)
	return info, errors.Join(err, ierr, t.conn.Close())
}

// paced reads or writes in pieces of a size, with a step after each.
type paced struct {
	t    *traffic
	size int
	conn net.Conn
}

func (p paced) Read(b []byte) (int, error) {
	n, err := p.conn.Read(b[:min(len(b), p.size)])
	p.t.step(n)
	return n, err
}

func (p paced) Write(b []byte) (int, error) {
	for done := 0; done < len(b); {
		n, err := p.conn.Write(b[done:min(len(b), done+p.size)])
		done += n
		p.t.step(n)
		if err != nil {
			return done, err
		}
	}
	return len(b), nil
}

// ramps sends a ramp and gets it back; then it ends its half, and the server does.
func ramps(v6 bool) *traffic {
	return &traffic{name: "echo", v6: v6, run: func(t *traffic, conn *net.TCPConn) error {
		verify := netnslab.NewRampVerifier(0)
		got := make(chan error, 1)
		go func() {
			_, err := io.Copy(verify, conn)
			got <- err
		}()
		var sent int64
		ramp := netnslab.NewRamp(0, -1)
		for !t.hurried() {
			n, err := io.CopyN(paced{t: t, size: 16 << 10, conn: conn}, ramp, 64<<10)
			sent += n
			if err != nil {
				return err
			}
		}
		if err := errors.Join(conn.CloseWrite(), <-got); err != nil {
			return err
		}
		if verify.Pos() != sent {
			return fmt.Errorf("%d bytes came back of %d", verify.Pos(), sent)
		}
		return nil
	}}
}

const getFile = "GET /file HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n"

// download is a GET whose answer is read slowly.
func download(content []byte) *traffic {
	return &traffic{name: "download", run: func(t *traffic, conn *net.TCPConn) error {
		if _, err := io.WriteString(conn, getFile); err != nil {
			return err
		}
		return readAnswer(paced{t: t, size: 16 << 10, conn: conn}, content)
	}}
}

// halfClosed is a download whose client has ended its half: the server's socket is in CLOSE_WAIT.
func halfClosed(content []byte) *traffic {
	return &traffic{name: "half-closed download", run: func(t *traffic, conn *net.TCPConn) error {
		if _, err := io.WriteString(conn, getFile); err != nil {
			return err
		}
		if err := conn.CloseWrite(); err != nil {
			return err
		}
		return readAnswer(paced{t: t, size: 16 << 10, conn: conn}, content)
	}}
}

// left is a short answer that the client has not read when the server has closed: it is no process's any more, and stays where it is.
func left(content []byte) *traffic {
	return &traffic{name: "unread answer", still: true, run: func(t *traffic, conn *net.TCPConn) error {
		if err := conn.SetReadBuffer(4 << 10); err != nil {
			return err
		}
		if _, err := io.WriteString(conn, strings.Replace(getFile, "/file", "/short", 1)); err != nil {
			return err
		}
		<-t.hurry
		return readAnswer(conn, content[:shortSize])
	}}
}

// readAnswer reads an HTTP answer with the content.
func readAnswer(r io.Reader, content []byte) error {
	resp, err := http.ReadResponse(bufio.NewReader(r), nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return fmt.Errorf("after %d bytes: %w", len(body), err)
	}
	if resp.StatusCode != http.StatusOK || sha256.Sum256(body) != sha256.Sum256(content) {
		return fmt.Errorf("%s, %d bytes instead of %d, or others", resp.Status, len(body), len(content))
	}
	return nil
}

// upload is a PUT that comes slowly.
func upload(root string, content []byte) *traffic {
	return &traffic{name: "upload", run: func(t *traffic, conn *net.TCPConn) error {
		if _, err := fmt.Fprintf(conn, "PUT /upload HTTP/1.1\r\nHost: lab\r\nContent-Length: %d\r\nConnection: close\r\n\r\n", len(content)); err != nil {
			return err
		}
		if _, err := (paced{t: t, size: 16 << 10, conn: conn}).Write(content); err != nil {
			return err
		}
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			return err
		}
		got, err := os.ReadFile(filepath.Join(root, "upload"))
		if err != nil || resp.StatusCode != http.StatusCreated || !bytes.Equal(got, content) {
			return fmt.Errorf("%s, %d bytes are there of %d, or others: %w", resp.Status, len(got), len(content), err)
		}
		return resp.Body.Close()
	}}
}

// longRequest is a GET with a head of 2 MiB that comes slowly: an upload for a server that takes no other.
func longRequest(content []byte) *traffic {
	return &traffic{name: "long request", run: func(t *traffic, conn *net.TCPConn) error {
		slow := paced{t: t, size: 1 << 8, conn: conn}
		if _, err := io.WriteString(conn, "GET /file HTTP/1.0\r\n"); err != nil {
			return err
		}
		for n := range 64 {
			if _, err := fmt.Fprintf(slow, "X-%d: %s\r\n", n, strings.Repeat("x", 32<<10)); err != nil {
				return err
			}
		}
		if _, err := io.WriteString(conn, "\r\n"); err != nil {
			return err
		}
		return readAnswer(conn, content)
	}}
}

// slowConn is a connection of which one direction is slow.
type slowConn struct {
	net.Conn
	reader io.Reader
	writer io.Writer
}

func (c slowConn) Read(b []byte) (int, error)  { return c.reader.Read(b) }
func (c slowConn) Write(b []byte) (int, error) { return c.writer.Write(b) }

// values writes a large value into a redis server and reads it, again and again; the client takes its time over what the command transfers.
func values(slow string) *traffic {
	return &traffic{name: slow, run: func(t *traffic, conn *net.TCPConn) error {
		through := slowConn{Conn: conn, reader: conn, writer: conn}
		if p := (paced{t: t, size: 16 << 10, conn: conn}); slow == "GET" {
			through.reader = p
		} else {
			through.writer = p
		}
		c := redis.NewConn(through, time.Minute, time.Minute)
		for n := uint64(1); !t.hurried(); n++ {
			want := make([]byte, 2<<20)
			if _, err := (netnslab.Noise{Seed: n, Size: int64(len(want))}).ReadAt(want, 0); err != nil {
				return err
			}
			if answer, err := redis.String(c.Do("SET", slow, want)); err != nil || answer != "OK" {
				return fmt.Errorf("SET %d: %q %w", n, answer, err)
			}
			got, err := redis.Bytes(c.Do("GET", slow))
			if err != nil {
				return fmt.Errorf("GET %d: %w", n, err)
			}
			if !bytes.Equal(got, want) {
				return fmt.Errorf("value %d differs", n)
			}
		}
		return nil
	}}
}

func noise(t *testing.T, size int64) []byte {
	t.Helper()
	b := make([]byte, size)
	if _, err := (netnslab.Noise{Seed: 9, Size: size}).ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	return b
}
