// SPDX-License-Identifier: Apache-2.0

package criu

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// lazyDir is a directory of the image, for the CRIU that fetches memory: the same files, and a firstFile of its own.
	lazyDir = "lazy"
	// lazyLog is that CRIU's log.
	lazyLog = "lazy.log"
	// giveTime is how long that CRIU may take to read what it has asked for.
	giveTime = 10 * time.Second
)

// fetcher is the part of a chamber that lets memory follow a tree: a second CRIU (criu lazy-pages), which is told by the kernel (userfaultfd) what
// the tree misses, and fetches the rest meanwhile. It runs under Init, which ends the tree when that CRIU fails: without it, the kernel would take what
// is missing for zeros.
type fetcher struct {
	dir    *os.File
	socket *net.UnixConn
	// ready is where CRIU says that it listens to the one that restores, fetched where Init says that everything is there.
	ready, fetched *os.File
	mu             sync.Mutex // for writing to socket
	answer         []byte
	theirs         []*os.File
}

// newFetcher makes what Init needs to start it, as descriptors from lazyDirFD on.
func newFetcher(s *Store) (f *fetcher, err error) {
	f = &fetcher{}
	defer func() {
		if err != nil {
			f.close()
			f = nil
		}
	}()
	if f.dir, err = makeDir(s.dir, lazyDir); err != nil {
		return f, err
	}
	if err := unix.Mkfifoat(int(f.dir.Fd()), firstFile, 0o600); err != nil {
		return f, fmt.Errorf("mkfifo %s: %w", firstFile, err)
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return f, fmt.Errorf("socketpair: %w", err)
	}
	ours, criu := os.NewFile(uintptr(fds[0]), "memory"), os.NewFile(uintptr(fds[1]), "memory")
	f.theirs = append(f.theirs, f.dir, criu, ours)
	conn, err := net.FileConn(ours) // a duplicate: ours goes to Init
	if err != nil {
		return f, fmt.Errorf("socketpair: %w", err)
	}
	f.socket, _ = conn.(*net.UnixConn)
	for _, r := range []**os.File{&f.ready, &f.fetched} {
		var w *os.File
		if *r, w, err = os.Pipe(); err != nil {
			return f, fmt.Errorf("pipe: %w", err)
		}
		f.theirs = append(f.theirs, w)
	}
	return f, nil
}

// started leaves to Init what is Init's.
func (f *fetcher) started() {
	for _, t := range f.theirs[1:] {
		_ = t.Close()
	}
	f.theirs = nil
}

// release lets the CRIU that fetches read the image, and waits until it is ready for the one that restores, or gone is closed.
func (f *fetcher) release(s *Store, gone <-chan struct{}) error {
	names, err := os.ReadDir(procFD(s.dir))
	if err != nil {
		return fmt.Errorf("list the image: %w", err)
	}
	for _, n := range names {
		if !strings.HasSuffix(n.Name(), imageSuffix) || n.Name() == firstFile {
			continue
		}
		if err := unix.Symlinkat("../"+n.Name(), int(f.dir.Fd()), n.Name()); err != nil {
			return fmt.Errorf("link %s: %w", n.Name(), err)
		}
	}
	if err := s.releaseIn(f.dir, gone); err != nil {
		return err
	}
	ready := make(chan error, 1)
	go func() {
		_, err := f.ready.Read(make([]byte, 1))
		ready <- err
	}()
	select {
	case <-gone:
		return ErrGone
	case err := <-ready:
		if err != nil {
			return fmt.Errorf("%w: criu lazy-pages: %s", ErrGone, readLog(s.dir, lazyLog))
		}
		return nil
	}
}

// serve passes on what CRIU asks for, until CRIU has everything, or fetch or the connection fails.
func (f *fetcher) serve(fetch func(Fetch) error) error {
	b := make([]byte, iovBytes)
	for {
		if _, err := io.ReadFull(f.socket, b); err != nil {
			return fmt.Errorf("criu lazy-pages: %w", ErrGone)
		}
		r, wanted, err := parseRequest(b)
		if err != nil {
			return err
		}
		if wanted {
			if err := fetch(r); err != nil {
				return err
			}
			continue
		}
		// A status of 0, in 4 bytes.
		f.mu.Lock()
		defer f.mu.Unlock()
		_, err = f.socket.Write(make([]byte, 4))
		return err
	}
}

// give gives CRIU the answer to its oldest request that has none yet.
func (f *fetcher) give(m Memory) error {
	if err := m.check(); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.answer = appendAnswer(f.answer[:0], m)
	if err := f.socket.SetWriteDeadline(time.Now().Add(giveTime)); err != nil {
		return err
	}
	_, err := f.socket.Write(f.answer)
	return err
}

// wait waits until everything has come.
func (f *fetcher) wait() error {
	if n, _ := f.fetched.Read(make([]byte, 1)); n != 1 {
		return ErrGone
	}
	return nil
}

func (f *fetcher) close() {
	for _, t := range f.theirs {
		_ = t.Close()
	}
	for _, c := range []io.Closer{f.dir, f.ready, f.fetched} {
		_ = c.Close() // of what there is not, an error
	}
	if f.socket != nil {
		_ = f.socket.Close()
	}
}

// fetcherCommand is the CRIU that fetches memory, with the descriptors that Init has.
func fetcherCommand(path string, image *os.File) *exec.Cmd {
	const dir, work, socket, ready = 3, 4, 5, 6 // in ExtraFiles
	cmd := exec.Command(path, "lazy-pages", "--images-dir", fmt.Sprintf("/proc/self/fd/%d", dir), "--work-dir", fmt.Sprintf("/proc/self/fd/%d", work),
		"--page-server", "--ps-socket", fmt.Sprint(socket), "--status-fd", fmt.Sprint(ready), "--log-file", lazyLog, fmt.Sprintf("-v%d", logLevel))
	own := func(fd uintptr) *os.File { return os.NewFile(fd, fmt.Sprint(fd)) }
	cmd.ExtraFiles = []*os.File{own(lazyDirFD), image, own(fetchFD), own(readyFD)}
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	return cmd
}

// readLog returns the errors of a log in the image's directory.
func readLog(dir *os.File, name string) string {
	b, err := os.ReadFile(procFD(dir) + "/" + name)
	if err != nil {
		return ""
	}
	return logReason(string(b))
}

var errNotLazy = errors.New("the chamber is not for memory that follows")
