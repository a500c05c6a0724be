// SPDX-License-Identifier: Apache-2.0

// Command fileserver sends the file whose name is the client's first line. A download that moves to another server in its
// middle goes on there at the next byte.
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"io"
	"log"
	"os"
	"strings"

	"github.com/rehome-net/rehome/handoff"
)

func main() {
	address, dir := flag.String("listen", ":7000", "address"), flag.String("dir", ".", "files")
	flag.Parse()
	root, err := os.OpenRoot(*dir)
	if err != nil {
		log.Fatal(err)
	}
	ln, err := handoff.Listen(context.Background(), "tcp", *address, handoff.Config{Service: "files", Export: export})
	if err != nil {
		log.Fatal(err)
	}
	for {
		c, err := ln.AcceptConn()
		if err != nil {
			log.Fatal(err)
		}
		go func() {
			defer func() { _ = c.Close() }()
			if err := serve(c, root); err != nil && !errors.Is(err, handoff.ErrMigrated) {
				log.Print(err)
			}
		}()
	}
}

// export tells the name; how far the client is, BytesWritten tells.
func export(_ context.Context, c *handoff.Conn) ([]byte, error) {
	name, ok := c.Value().(string)
	if !ok && c.BytesRead() > 0 {
		return nil, handoff.ErrNotNow // The name is being read.
	}
	return []byte(name), nil
}

func serve(c *handoff.Conn, root *os.Root) error {
	name := string(c.State().Data)
	if name == "" {
		line, err := bufio.NewReader(c).ReadString('\n')
		if err != nil {
			return err
		}
		name = strings.TrimSpace(line)
	}
	c.SetValue(name)
	f, err := root.Open(name)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if _, err := f.Seek(int64(c.BytesWritten()), io.SeekStart); err != nil {
		return err
	}
	_, err = io.Copy(c, f)
	return err
}
