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
	"time"

	"golang.org/x/sys/unix"
)

const (
	// pipeBytes is the size of the pipes that memory comes through, where the system allows it.
	pipeBytes = 1 << 20
	// sparePipes are pipes beyond one for each process: shared memory has files of its own.
	sparePipes = 16
)

// capture takes a tree's image from CRIU without keeping it. CRIU's protocol knows no streams; so the files that the tree's memory is written
// to are made beforehand, as links to pipes that CRIU inherits, and passed on while CRIU writes. All others are small: they stay in the directory until
// the dump is complete. When this process dies CRIU cannot write any more, and lets the tree go on. (Named pipes would not do: opening one
// waits for a reader, for ever.)
type capture struct {
	dir *os.File
	// prefix begins the names of the pieces' files.
	prefix string
	ahead  *Ahead // nil if nothing was sent ahead
	// sink gets the pieces. It may block: CRIU then waits.
	sink    func(Piece) error
	readers map[string]*os.File
	// writers are the pipes' other ends, which are CRIU's.
	writers []*os.File
	reading sync.WaitGroup

	mu       sync.Mutex
	manifest Manifest
	err      error
}

// newCapture prepares the directory, which is to be CRIU's image directory, for a tree of so many processes. The writers are to be CRIU's descriptors
// from firstPipeFD on.
func newCapture(dir *os.File, prefix string, processes int, ahead *Ahead, sink func(Piece) error) (*capture, error) {
	c := &capture{dir: dir, prefix: prefix, ahead: ahead, sink: sink, readers: make(map[string]*os.File)}
	for i := range processes + sparePipes {
		name := fmt.Sprintf("pages-%d.img", i+1)
		r, w, err := os.Pipe()
		if err == nil {
			c.readers[name], c.writers = r, append(c.writers, w)
			_, _ = unix.FcntlInt(w.Fd(), unix.F_SETPIPE_SZ, pipeBytes) // better, not needed
			err = unix.Symlinkat(fmt.Sprintf("/proc/self/fd/%d", firstPipeFD+i), int(dir.Fd()), name)
		}
		if err != nil {
			c.close()
			return nil, fmt.Errorf("pipe %s: %w", name, err)
		}
	}
	c.reading.Add(len(c.readers))
	for name, r := range c.readers {
		go func() {
			defer c.reading.Done()
			c.pass(name, r, c.ahead)
		}()
	}
	return c, nil
}

// closeWriters leaves the pipes' ends to CRIU, which has been started.
func (c *capture) closeWriters() {
	for _, w := range c.writers {
		_ = w.Close()
	}
	c.writers = nil
}

// procFD returns a path of an open file, for this process.
func procFD(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }

// pass passes one file on, and closes it: who writes to a pipe that nobody takes fails.
func (c *capture) pass(name string, r *os.File, ahead *Ahead) {
	sum := newFileDigest()
	name = c.prefix + name
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
		n, err := readPart(r, b[part:])
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

// readPart reads from a file, or from a pipe until its time is over; what is in the pipe then is the last of it.
func readPart(r io.Reader, b []byte) (int, error) {
	n, err := r.Read(b)
	f, isFile := r.(*os.File)
	if !errors.Is(err, os.ErrDeadlineExceeded) || !isFile {
		return n, err
	}
	raw, err := f.SyscallConn()
	if err == nil {
		err = f.SetReadDeadline(time.Time{})
	}
	if err != nil {
		return 0, err
	}
	var rerr error
	err = raw.Read(func(fd uintptr) bool {
		n, rerr = unix.Read(int(fd), b)
		return true
	})
	_ = f.SetReadDeadline(time.Unix(1, 0))
	switch {
	case err != nil:
		return 0, err
	case errors.Is(rerr, unix.EAGAIN), rerr == nil && n == 0:
		return 0, io.EOF
	case rerr != nil:
		return 0, rerr
	}
	return n, nil
}

// finish passes on what is left when CRIU has written everything, and returns what the image consists of.
func (c *capture) finish() (Manifest, error) {
	// CRIU still has the pipes, so that they have no end; but it writes nothing any more.
	for _, r := range c.readers {
		_ = r.SetReadDeadline(time.Unix(1, 0))
	}
	c.reading.Wait()
	names, err := os.ReadDir(procFD(c.dir))
	if err != nil {
		return Manifest{}, fmt.Errorf("list the image: %w", err)
	}
	for _, f := range names {
		if c.readers[f.Name()] != nil || !strings.HasSuffix(f.Name(), imageSuffix) {
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
	c.closeWriters()
	for _, r := range c.readers {
		_ = r.Close()
	}
	c.reading.Wait()
}
