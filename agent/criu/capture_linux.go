// SPDX-License-Identifier: Apache-2.0

package criu

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	// pipeBytes is the size of the pipes that memory comes through, where the system allows it.
	pipeBytes = 1 << 20
	// sparePipes are pipes beyond one for each process: shared memory has files of its own.
	sparePipes = 16
)

// capture takes a tree's image from CRIU without keeping it. CRIU's protocol knows no streams; so the files that the tree's memory is written
// to are made beforehand, as named pipes, and passed on while CRIU writes. All others are small: they stay in the directory until the dump is complete.
type capture struct {
	dir   *os.File
	ahead *Ahead // nil if nothing was sent ahead
	// sink gets the pieces. It may block: CRIU then waits.
	sink    func(Piece) error
	pipes   map[string]*pipe
	reading sync.WaitGroup

	mu       sync.Mutex
	manifest Manifest
	err      error
}

// pipe is a named pipe that stands for a file.
type pipe struct {
	reader *os.File
	// keeper is open for writing, so that the pipe has no end before the dump has.
	keeper *os.File
}

// newCapture prepares the directory, which is to be CRIU's image directory, for a tree of so many processes.
func newCapture(dir *os.File, processes int, ahead *Ahead, sink func(Piece) error) (*capture, error) {
	c := &capture{dir: dir, ahead: ahead, sink: sink, pipes: make(map[string]*pipe)}
	for i := range processes + sparePipes {
		name := fmt.Sprintf("pages-%d.img", i+1)
		p, err := newPipe(dir, name)
		if err != nil {
			c.close()
			return nil, fmt.Errorf("pipe %s: %w", name, err)
		}
		c.pipes[name] = p
	}
	c.reading.Add(len(c.pipes))
	for name, p := range c.pipes {
		go func() {
			defer c.reading.Done()
			c.pass(name, p.reader, c.ahead)
		}()
	}
	return c, nil
}

func newPipe(dir *os.File, name string) (*pipe, error) {
	if err := unix.Mkfifoat(int(dir.Fd()), name, 0o600); err != nil {
		return nil, err
	}
	// Opened without waiting, the Go runtime can wait for it; and only then is closing it an end for its reader.
	r, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	w, err := unix.Openat(int(dir.Fd()), name, unix.O_WRONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, errors.Join(err, unix.Close(r))
	}
	_, _ = unix.FcntlInt(uintptr(r), unix.F_SETPIPE_SZ, pipeBytes) // better, not needed
	return &pipe{reader: os.NewFile(uintptr(r), name), keeper: os.NewFile(uintptr(w), name)}, nil
}

// procFD returns a path of an open file, for this process.
func procFD(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }

// pass passes one file on, and closes it: who writes to a pipe that nobody takes fails.
func (c *capture) pass(name string, r *os.File, ahead *Ahead) {
	sum := newFileDigest()
	err := copyPieces(name, r, sum, func(p Piece) error { return c.sink(ahead.shorten(p)) })
	_ = r.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case err == nil:
		c.manifest.end(name, sum)
	case !errors.Is(err, os.ErrClosed): // by close
		c.err = cmp.Or(c.err, err)
	}
}

func copyPieces(name string, r io.Reader, sum *fileDigest, sink func(Piece) error) error {
	b, part := make([]byte, MaxPiece), 0
	for {
		// Memory comes in whole pages, but not always at once.
		n, err := r.Read(b[part:])
		n += part
		whole := n
		if err == nil {
			whole = n / PageSize * PageSize
		}
		if whole > 0 {
			sum.add(b[:whole])
			if err := sink(Piece{File: name, Data: b[:whole]}); err != nil {
				return err
			}
		}
		part = copy(b, b[whole:n])
		if errors.Is(err, io.EOF) {
			return sink(Piece{File: name})
		}
		if err != nil {
			return fmt.Errorf("read %s: %w", name, err)
		}
	}
}

// finish passes on what is left when CRIU has written everything, and returns what the image consists of.
func (c *capture) finish() (Manifest, error) {
	for _, p := range c.pipes {
		_ = p.keeper.Close()
	}
	c.reading.Wait()
	names, err := os.ReadDir(procFD(c.dir))
	if err != nil {
		return Manifest{}, fmt.Errorf("list the image: %w", err)
	}
	for _, f := range names {
		if c.pipes[f.Name()] != nil || !strings.HasSuffix(f.Name(), imageSuffix) {
			continue
		}
		r, err := os.Open(procFD(c.dir) + "/" + f.Name())
		if err != nil {
			return Manifest{}, fmt.Errorf("read the image: %w", err)
		}
		c.pass(f.Name(), r, nil)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.manifest, c.err
}

// failure returns why the image could not be passed on.
func (c *capture) failure() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// close ends the capture; CRIU has ended before, or waits for it in vain.
func (c *capture) close() {
	for _, p := range c.pipes {
		_ = p.keeper.Close()
		_ = p.reader.Close()
	}
	c.reading.Wait()
}
