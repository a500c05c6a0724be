// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// maxFDs is how many descriptors one message on a UNIX socket may carry (SCM_MAX_FD, Linux).
const maxFDs = 253

// maxWaitingFDs bounds the descriptors that arrived ahead of their frames: a peer that sends more is hostile.
const maxWaitingFDs = 4 * maxFDs

// fdQueue keeps received descriptors in their order of arrival until their frames have been read.
type fdQueue struct {
	mu     sync.Mutex
	fds    []int
	closed bool
}

func (q *fdQueue) add(fds []int) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed || len(q.fds)+len(fds) > maxWaitingFDs {
		closeFDs(fds)
		return fmt.Errorf("%w: %d descriptors without frames", ErrTooLarge, len(q.fds)+len(fds))
	}
	q.fds = append(q.fds, fds...)
	return nil
}

func (q *fdQueue) take() (int, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.fds) == 0 {
		return -1, false
	}
	fd := q.fds[0]
	q.fds = q.fds[1:]
	return fd, true
}

func (q *fdQueue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	closeFDs(q.fds)
	q.fds, q.closed = nil, true
}

// fdReader reads the bytes of a UNIX stream socket and queues the descriptors that come with them.
type fdReader struct {
	conn *prompt
	fds  *fdQueue
	oob  [16 + 4*maxFDs]byte
}

func (r *fdReader) Read(b []byte) (int, error) {
	n, oobn, flags, err := r.conn.receive(b, r.oob[:])
	if oobn > 0 {
		fds, perr := parseRights(r.oob[:oobn])
		if perr == nil && flags&unix.MSG_CTRUNC != 0 {
			closeFDs(fds)
			perr = fmt.Errorf("%w: descriptors were lost: raise this process's limit of open files", ErrTooLarge)
		} else if perr == nil {
			perr = r.fds.add(fds)
		}
		if perr != nil {
			return 0, perr
		}
	}
	return n, err
}

func parseRights(oob []byte) ([]int, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("%w: control message: %w", ErrMalformed, err)
	}
	var fds []int
	for i := range messages {
		if messages[i].Header.Level != unix.SOL_SOCKET || messages[i].Header.Type != unix.SCM_RIGHTS {
			continue
		}
		got, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			closeFDs(fds)
			return nil, fmt.Errorf("%w: descriptors: %w", ErrMalformed, err)
		}
		fds = append(fds, got...)
	}
	return fds, nil
}

// passing is a descriptor on its way, and where in the queue of bytes its frame ends.
type passing struct{ fd, end int }

// writeFDs writes b with the descriptors of its frames before deadline. A message that carries descriptors holds
// their frames and no later ones, so that a reader never has more waiting than two messages' worth.
func writeFDs(conn *prompt, b []byte, fds []passing, deadline time.Time) error {
	written := 0
	for len(fds) > 0 {
		n := min(len(fds), maxFDs)
		rights := make([]int, n)
		for i, p := range fds[:n] {
			rights[i] = p.fd
		}
		end := fds[n-1].end
		sent, err := writeRights(conn, b[written:end], unix.UnixRights(rights...), deadline)
		if err != nil {
			return err
		}
		if rest := b[written+sent : end]; len(rest) > 0 {
			if _, err := conn.Write(rest); err != nil {
				return err
			}
		}
		written, fds = end, fds[n:]
	}
	if written == len(b) {
		return nil
	}
	_, err := conn.Write(b[written:])
	return err
}

// writeRights sends one message. While a user's processes have more descriptors on their way than their limit of open
// files, the kernel answers ETOOMANYREFS: the reader will take some.
func writeRights(conn *prompt, b, rights []byte, deadline time.Time) (int, error) {
	for {
		sent, err := conn.send(b, rights)
		if !errors.Is(err, unix.ETOOMANYREFS) || !time.Now().Before(deadline) {
			return sent, err
		}
		time.Sleep(time.Millisecond)
	}
}

func closePassing(fds []passing) {
	for _, p := range fds {
		closeFD(p.fd)
	}
}

func closeFDs(fds []int) {
	for _, fd := range fds {
		closeFD(fd)
	}
}

func closeFD(fd int) {
	if fd >= 0 {
		_ = unix.Close(fd)
	}
}
