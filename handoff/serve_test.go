// SPDX-License-Identifier: Apache-2.0

package handoff_test

import (
	"errors"
	"io"
	"net"
	"testing"

	"github.com/rehome-net/rehome/handoff"
)

func TestServeHandlesAndCloses(t *testing.T) {
	ln, err := handoff.Listen(t.Context(), "tcp", "127.0.0.1:0", handoff.Config{Service: "greeting", Agent: t.TempDir() + "/none"})
	if err != nil {
		t.Fatal(err)
	}
	over := make(chan error, 1)
	go func() { over <- ln.Serve(func(c *handoff.Conn) { _, _ = io.WriteString(c, "hello") }) }()
	for range 3 {
		c, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		// All of it, which ends because Serve closes the connection.
		if got, err := io.ReadAll(c); err != nil || string(got) != "hello" {
			t.Errorf("the client read %q, %v", got, err)
		}
		_ = c.Close()
	}
	if err := ln.Close(); err != nil {
		t.Error(err)
	}
	if err := <-over; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Serve ended with %v, want net.ErrClosed", err)
	}
}
