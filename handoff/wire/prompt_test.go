// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"
)

// promptPair returns both ends of a TCP connection, the first of them prompt.
func promptPair(t *testing.T) (prompt, other net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	conn, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if other, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { other.Close() })
	return Prompt(conn), other
}

// More than the socket's buffers hold arrives whole, both ways, and the end is io.EOF.
func TestPromptTransfers(t *testing.T) {
	p, other := promptPair(t)
	sent := make([]byte, 16<<20)
	for i := range sent {
		sent[i] = byte(i ^ i>>8)
	}
	for _, way := range []struct{ from, to net.Conn }{{p, other}, {other, p}} {
		done := make(chan error, 1)
		go func() {
			_, err := way.from.Write(sent)
			done <- errors.Join(err, way.from.SetDeadline(time.Time{}))
		}()
		got := make([]byte, len(sent))
		if _, err := io.ReadFull(way.to, got); err != nil || !bytes.Equal(got, sent) {
			t.Fatalf("%v, equal: %v", err, bytes.Equal(got, sent))
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	if n, err := p.Read(make([]byte, 1)); n != 0 || err != io.EOF { //nolint:errorlint // bare, as io.ReadFull wants it
		t.Errorf("at the end: %d, %v", n, err)
	}
}

// Deadlines and Close end calls that wait, as with any net.Conn.
func TestPromptEnds(t *testing.T) {
	p, _ := promptPair(t)
	if err := p.SetDeadline(time.Now().Add(20 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read: %v", err)
	}
	if _, err := p.Write(make([]byte, 64<<20)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("write: %v", err)
	}
	if err := p.SetDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	read := make(chan error, 1)
	go func() {
		_, err := p.Read(make([]byte, 1))
		read <- err
	}()
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-read; !errors.Is(err, net.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}
