// SPDX-License-Identifier: Apache-2.0

package criu

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Store keeps an image in memory for Restore. Its methods are safe for concurrent use.
type Store struct {
	mu       sync.Mutex
	dir      *os.File
	open     map[string]*storedFile
	names    map[string]bool
	manifest Manifest
	err      error
}

type storedFile struct {
	file *os.File
	sum  *fileDigest
}

// NewStore returns a store with room for limit bytes. Close frees it.
func NewStore(limit int64) (*Store, error) {
	dir, err := newMemory(limit)
	if err != nil {
		return nil, &OpError{Op: "store", Err: err}
	}
	return &Store{dir: dir, open: make(map[string]*storedFile), names: make(map[string]bool)}, nil
}

// Write takes the next piece. After an error, which Check repeats, it takes nothing more.
func (s *Store) Write(p Piece) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err = s.write(p)
	}
	return s.err
}

func (s *Store) write(p Piece) error {
	if s.dir == nil {
		return os.ErrClosed
	}
	f := s.open[p.File]
	if f == nil {
		var err error
		if f, err = s.create(p.File); err != nil {
			return err
		}
	}
	if len(p.Data) == 0 {
		delete(s.open, p.File)
		s.manifest.end(p.File, f.sum)
		return f.file.Close()
	}
	f.sum.add(p.Data)
	if _, err := f.file.Write(p.Data); err != nil {
		if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.ENOMEM) {
			return fmt.Errorf("%w (%w)", ErrFull, err)
		}
		return fmt.Errorf("store %s: %w", p.File, err)
	}
	return nil
}

func (s *Store) create(name string) (*storedFile, error) {
	if !validName(name) || s.names[name] || len(s.names) >= MaxFiles {
		return nil, fmt.Errorf("%w: file %q does not belong there", ErrImage, name)
	}
	s.names[name] = true
	fd, err := unix.Openat(int(s.dir.Fd()), name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("store %s: %w", name, err)
	}
	f := &storedFile{file: os.NewFile(uintptr(fd), name), sum: newFileDigest()}
	s.open[name] = f
	return f, nil
}

// Check reports whether the image is all there.
func (s *Store) Check(want Manifest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.err != nil:
		return s.err
	case len(s.open) > 0:
		return fmt.Errorf("%w: %d files have no end", ErrImage, len(s.open))
	}
	return s.manifest.check(want)
}

// Bytes returns the size of what has come.
func (s *Store) Bytes() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.manifest.Bytes
	for _, f := range s.open {
		n += f.sum.bytes
	}
	return n
}

// Close frees the image, as soon as no CRIU uses it any more.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dir == nil {
		return nil
	}
	errs := []error{s.dir.Close()}
	for _, f := range s.open {
		errs = append(errs, f.file.Close())
	}
	s.dir, s.open = nil, nil
	return errors.Join(errs...)
}

// log returns the end of CRIU's log in the directory.
func logOf(dir *os.File) string {
	if dir == nil {
		return ""
	}
	b, err := os.ReadFile(procFD(dir) + "/" + logFile)
	if err != nil {
		return ""
	}
	return logReason(string(b))
}
