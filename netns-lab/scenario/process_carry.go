// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"net/netip"
	"os"
	"path/filepath"

	netnslab "github.com/rehome-net/rehome/netns-lab"
)

// directorySize returns the sum of the sizes of a directory's files, in bytes.
func directorySize(dir string) (int64, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0, err
	}
	var sum int64
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			return 0, err
		}
		sum += info.Size()
	}
	return sum, nil
}

// carry copies the files of a directory from host to host, over one TCP connection between them.
func carry(ctx context.Context, from, to *netnslab.Host, source, target string) error {
	ln, err := to.Listen(ctx, "tcp", netip.AddrPortFrom(to.Addr4(), 0).String())
	if err != nil {
		return err
	}
	defer ln.Close() //nolint:errcheck // nothing was written
	got := make(chan error, 1)
	go func() {
		conn, err := ln.Accept()
		if err == nil {
			err = errors.Join(unpack(conn, target), conn.Close())
		}
		got <- err
	}()
	conn, err := from.Dial(ctx, "tcp", ln.Addr().String())
	if err != nil {
		return errors.Join(err, ln.Close(), <-got)
	}
	err = errors.Join(pack(conn, source), conn.Close())
	return errors.Join(err, <-got)
}

// pack writes the files of a directory as a tar archive.
func pack(w io.Writer, dir string) error {
	archive := tar.NewWriter(w)
	return errors.Join(archive.AddFS(os.DirFS(dir)), archive.Close())
}

// unpack reads what pack has written into a directory.
func unpack(r io.Reader, dir string) error {
	archive := tar.NewReader(r)
	for {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		f, err := os.Create(filepath.Join(dir, filepath.Base(h.Name)))
		if err != nil {
			return err
		}
		_, err = io.Copy(f, archive)
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
}
