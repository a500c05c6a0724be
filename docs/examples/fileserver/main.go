// SPDX-License-Identifier: Apache-2.0

// Command fileserver sends the file of /srv whose name is the client's first line. A download that moves to another
// server in its middle goes on there at the next byte.
package main

import (
	"bufio"
	"context"
	"io"
	"log"
	"os"
	"strings"

	"github.com/rehome-net/rehome/handoff"
)

func main() {
	ln, err := handoff.Listen(context.Background(), "tcp", ":7000", handoff.Config{Service: "files", Export: export})
	for err == nil {
		var c *handoff.Conn
		if c, err = ln.AcceptConn(); err == nil {
			go serve(c)
		}
	}
	log.Fatal(err)
}

// export tells the name; how far the client is, BytesWritten tells.
func export(_ context.Context, c *handoff.Conn) ([]byte, error) {
	name, ok := c.Value().(string)
	if !ok && c.BytesRead() > 0 {
		return nil, handoff.ErrNotNow // The name is being read.
	}
	return []byte(name), nil
}

func serve(c *handoff.Conn) {
	defer c.Close() //nolint:errcheck // after a move there is nothing to close
	name := string(c.State().Data)
	if name == "" {
		name, _ = bufio.NewReader(c).ReadString('\n')
	}
	c.SetValue(name)
	if f, err := os.OpenInRoot("/srv", strings.TrimSpace(name)); err == nil {
		defer f.Close() //nolint:errcheck // read only
		_, _ = f.Seek(int64(c.BytesWritten()), io.SeekStart)
		_, _ = io.Copy(c, f) // ends with handoff.ErrMigrated when the connection has moved
	}
}
