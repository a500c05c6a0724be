// SPDX-License-Identifier: Apache-2.0

// Command fileserver sends the file of /srv whose name is the client's first line. A download that moves to another
// server in its middle goes on there at the next byte.
package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"os"

	"github.com/rehome-net/rehome/handoff"
)

func main() {
	ln, err := handoff.Listen(context.Background(), "tcp", ":7000", handoff.Config{Service: "files", Export: export})
	if err != nil {
		log.Fatal(err)
	}
	log.Fatal(ln.Serve(serve))
}

func export(_ context.Context, c *handoff.Conn) ([]byte, error) {
	name, ok := c.Value().(string) // how far the client is, BytesWritten tells
	if !ok && c.BytesRead() > 0 {
		return nil, handoff.ErrNotNow // The name is being read.
	}
	return []byte(name), nil
}

func serve(c *handoff.Conn) {
	name := string(c.State().Data)
	if name == "" {
		_, _ = fmt.Fscanln(c, &name)
	}
	c.SetValue(name)
	if f, err := os.OpenInRoot("/srv", name); err == nil {
		defer f.Close() //nolint:errcheck // read only
		_, _ = f.Seek(int64(c.BytesWritten()), io.SeekStart)
		_, _ = io.Copy(c, f) // ends with handoff.ErrMigrated when the connection has moved
	}
}
