// SPDX-License-Identifier: Apache-2.0

package criu

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Store keeps an image in memory for Restore. Its methods are safe for concurrent use.
type Store struct {
	mu    sync.Mutex
	dir   *os.File
	open  map[string]*storedFile
	names map[string]bool
	first []byte // the contents of firstFile
	// ahead is memory that was sent ahead of the freeze, mapped the same in this process's memory.
	ahead      *os.File
	aheadPages int
	mapped     []byte
	manifest   Manifest
	err        error
	// reserved is set while there is room made for a file that has not begun; rounds is how many images precede the final one.
	reserved bool
	rounds   int
}

type storedFile struct {
	file *os.File // nil for firstFile
	sum  *fileDigest
}

// NewStore returns a store with room for limit bytes. Close frees it.
func NewStore(limit int64) (*Store, error) {
	dir, err := newMemory(limit)
	if err != nil {
		return nil, &OpError{Op: "store", Err: err}
	}
	if err := unix.Mkfifoat(int(dir.Fd()), firstFile, 0o600); err != nil {
		return nil, &OpError{Op: "store", Err: errors.Join(err, dir.Close())}
	}
	return &Store{dir: dir, open: make(map[string]*storedFile), names: make(map[string]bool)}, nil
}

// firstFile is what CRIU reads first of an image; it comes last, and CRIU waits for it.
const firstFile = "inventory.img"

// maxFirst bounds it: it must fit into a pipe.
const maxFirst = 32 << 10

// firstPause is the time between two looks whether CRIU is there to read firstFile.
const firstPause = 200 * time.Microsecond

// release lets CRIU read the image. It waits until CRIU wants to, or gone is closed.
func (s *Store) release(gone <-chan struct{}) error {
	s.mu.Lock()
	dir := s.dir
	s.mu.Unlock()
	if dir == nil {
		return os.ErrClosed
	}
	return s.releaseIn(dir, gone)
}

// releaseIn does so for a CRIU whose image is in dir.
func (s *Store) releaseIn(dir *os.File, gone <-chan struct{}) error {
	s.mu.Lock()
	first := s.first
	s.mu.Unlock()
	if len(first) == 0 {
		return fmt.Errorf("%w: %s is missing", ErrImage, firstFile)
	}
	for {
		// What is in a pipe that nobody has open is lost.
		fd, err := unix.Openat(int(dir.Fd()), firstFile, unix.O_WRONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err == nil {
			f := os.NewFile(uintptr(fd), firstFile)
			_, err = f.Write(first)
			return errors.Join(err, f.Close())
		}
		if !errors.Is(err, unix.ENXIO) {
			return fmt.Errorf("open %s: %w", firstFile, err)
		}
		select {
		case <-gone:
			return ErrGone
		case <-time.After(firstPause):
		}
	}
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
	if err := p.check(); err != nil {
		return err
	}
	if p.File == aheadFile {
		return s.writeAhead(p.Data)
	}
	if len(p.Pages) > 0 {
		return s.lengthen(p, func(data []byte) error { return s.append(p.File, data) })
	}
	return s.append(p.File, p.Data)
}

// append adds data to a file, or ends it if there is none.
func (s *Store) append(name string, data []byte) error {
	p := Piece{File: name, Data: data}
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
		if f.file == nil {
			return nil
		}
		return f.file.Close()
	}
	f.sum.add(p.Data)
	if p.File == parentFile {
		return s.follow(string(p.Data))
	}
	if f.file == nil {
		if s.first = append(s.first, p.Data...); len(s.first) > maxFirst {
			return fmt.Errorf("%w: %s has more than %d bytes", ErrImage, firstFile, maxFirst)
		}
		return nil
	}
	if _, err := f.file.Write(p.Data); err != nil {
		return storeError(p.File, err)
	}
	return nil
}

func storeError(name string, err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.ENOMEM) {
		return fmt.Errorf("%w (%w)", ErrFull, err)
	}
	return fmt.Errorf("store %s: %w", name, err)
}

// follow notes that images precede this one, and links each to the one before it, as CRIU looks for it.
func (s *Store) follow(text string) error {
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n > maxTrackedRounds || s.rounds != 0 {
		return fmt.Errorf("%w: %q images before it", ErrImage, text)
	}
	s.rounds = n
	for ; n > 0; n-- {
		link, to := strconv.Itoa(n+1)+"/parent", "../"+strconv.Itoa(n)
		if n == s.rounds {
			link, to = "parent", strconv.Itoa(n)
		}
		if err := unix.Symlinkat(to, int(s.dir.Fd()), link); err != nil {
			return fmt.Errorf("%w: image %d is missing: %w", ErrImage, n, err)
		}
	}
	return nil
}

// writeAhead keeps memory that was sent ahead.
func (s *Store) writeAhead(data []byte) error {
	if len(data)%PageSize != 0 || s.mapped != nil {
		return fmt.Errorf("%w: memory of %d bytes", ErrImage, len(data))
	}
	if s.ahead == nil {
		fd, err := unix.Openat(int(s.dir.Fd()), aheadFile, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return storeError(aheadFile, err)
		}
		s.ahead = os.NewFile(uintptr(fd), aheadFile)
	}
	n, err := s.ahead.Write(data)
	s.aheadPages += n / PageSize
	if err != nil {
		return storeError(aheadFile, err)
	}
	return nil
}

// lengthen passes on a piece's data with the pages that were sent ahead. Pages that follow one another there are passed on at once, from where they
// are.
func (s *Store) lengthen(p Piece, pass func([]byte) error) error {
	if err := s.mapAhead(); err != nil {
		return err
	}
	literal := p.Data
	for i := 0; i < len(p.Pages); {
		from, fresh := i, p.Pages[i] == LiteralPage
		for i++; i < len(p.Pages) && (fresh && p.Pages[i] == LiteralPage || !fresh && p.Pages[i] == p.Pages[i-1]+1 && p.Pages[i] != LiteralPage); i++ {
		}
		size := (i - from) * PageSize
		if fresh {
			if err := pass(literal[:size]); err != nil {
				return err
			}
			literal = literal[size:]
			continue
		}
		at := int(p.Pages[from]) * PageSize
		if at+size > len(s.mapped) {
			return fmt.Errorf("%w: page %d was not sent ahead", ErrImage, p.Pages[i-1])
		}
		if err := pass(s.mapped[at : at+size]); err != nil {
			return err
		}
	}
	return nil
}

// mapAhead brings the memory that was sent ahead into this process's, when the first page of it is needed: nothing is added from then on.
func (s *Store) mapAhead() (err error) {
	if s.mapped != nil || s.aheadPages == 0 {
		return nil
	}
	s.mapped, err = unix.Mmap(int(s.ahead.Fd()), 0, s.aheadPages*PageSize, unix.PROT_READ, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		s.mapped = nil
		return fmt.Errorf("map %s: %w", aheadFile, err)
	}
	return nil
}

// Reserve makes room for the memory of a tree that will have about so many bytes, so that it need not be made within the freeze.
func (s *Store) Reserve(bytes uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dir == nil {
		return os.ErrClosed
	}
	// The first process of a tree is the largest, as a rule. What is not used goes with the store.
	fd, err := unix.Openat(int(s.dir.Fd()), largestFile, unix.O_WRONLY|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return storeError(largestFile, err)
	}
	s.reserved = true
	err = unix.Fallocate(fd, unix.FALLOC_FL_KEEP_SIZE, 0, int64(bytes))
	if err != nil {
		err = storeError(largestFile, err)
	}
	return errors.Join(err, unix.Close(fd))
}

// largestFile has the memory of a tree's first process.
const largestFile = "pages-1.img"

func (s *Store) create(name string) (*storedFile, error) {
	if !validName(name) || s.names[name] || len(s.names) >= MaxFiles {
		return nil, fmt.Errorf("%w: file %q does not belong there", ErrImage, name)
	}
	s.names[name] = true
	f := &storedFile{sum: newFileDigest()}
	s.open[name] = f
	if name == firstFile || name == parentFile {
		return f, nil
	}
	if round, _ := splitRound(name); round != "" {
		if err := s.beginRound(round); err != nil {
			return nil, err
		}
	}
	fd, err := unix.Openat(int(s.dir.Fd()), name, unix.O_WRONLY|unix.O_CREAT|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		delete(s.open, name)
		return nil, fmt.Errorf("store %s: %w", name, err)
	}
	f.file = os.NewFile(uintptr(fd), name)
	return f, nil
}

// beginRound makes the directory of an image that precedes the final one. Most of the memory comes with it, so that no room need be kept.
func (s *Store) beginRound(round string) error {
	if s.reserved {
		s.reserved = false
		if err := unix.Unlinkat(int(s.dir.Fd()), largestFile, 0); err != nil {
			return fmt.Errorf("remove %s: %w", largestFile, err)
		}
	}
	dir, err := makeDir(s.dir, round)
	if err != nil {
		return err
	}
	return dir.Close()
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
		if f.file != nil {
			errs = append(errs, f.file.Close())
		}
	}
	if s.ahead != nil {
		errs = append(errs, s.ahead.Close())
	}
	if s.mapped != nil {
		errs = append(errs, unix.Munmap(s.mapped))
	}
	s.dir, s.open, s.ahead, s.mapped = nil, nil, nil, nil
	return errors.Join(errs...)
}

// logOf returns the first errors of CRIU's log in the directory.
func logOf(dir *os.File) string {
	if dir == nil {
		return ""
	}
	return readLog(dir, logFile)
}
