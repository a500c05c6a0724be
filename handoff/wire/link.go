// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// maxQueued bounds what waits to be written to one peer; a peer that lets more pile up is given up.
	maxQueued = 256 << 20
	// writeTimeout bounds one write to a peer, of writePiece bytes at most.
	writeTimeout = 10 * time.Second
	writePiece   = 1 << 20
)

// ErrOverrun means that the peer does not read what is sent to it.
var ErrOverrun = errors.New("wire: peer does not read")

// Link carries frames over one connection: TCP, TLS or a UNIX stream socket, and over the last also descriptors.
// Send never blocks: one goroutine writes what has been queued, so that frames queued together leave together; that is
// how many migrations share a system call and a TLS record. Receive is for one goroutine.
type Link struct {
	conn   net.Conn
	unix   *net.UnixConn // nil unless descriptors can travel
	reader *bufio.Reader
	fds    fdQueue

	progress atomic.Int64 // time of the last write, in nanoseconds since 1970

	mu     sync.Mutex
	wake   *sync.Cond
	queue  []byte
	queued []passing // descriptors that go with queue
	// writing is set while a batch taken from queue is on its way.
	writing bool
	err     error
	done    chan struct{}
}

// NewLink returns a link over conn and owns conn.
func NewLink(conn net.Conn) *Link {
	l := &Link{conn: conn, done: make(chan struct{})}
	l.wake = sync.NewCond(&l.mu)
	var source io.Reader = conn
	if u, ok := conn.(*net.UnixConn); ok {
		l.unix = u
		source = &fdReader{conn: u, fds: &l.fds}
	}
	l.reader = bufio.NewReaderSize(source, 64<<10)
	go l.write()
	return l
}

// Send queues a frame that carries no descriptor. The message may be reused when it returns.
func (l *Link) Send(id uint64, m Message) error { return l.SendFD(id, m, -1) }

// SendFD queues a frame that a descriptor accompanies, and owns fd from here on, whatever it returns; -1 is none.
func (l *Link) SendFD(id uint64, m Message, fd int) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	err := l.err
	if err == nil && (fd >= 0) != m.Kind().Carries() {
		err = fmt.Errorf("send %v: descriptor %d does not fit the kind", m.Kind(), fd)
	}
	if err == nil && fd >= 0 && l.unix == nil {
		err = fmt.Errorf("send %v: no descriptors over %s", m.Kind(), l.conn.RemoteAddr().Network())
	}
	if err == nil && len(l.queue) > maxQueued {
		err = ErrOverrun
		l.fail(err)
	}
	if err == nil {
		var out []byte
		if out, err = Append(l.queue, Frame{ID: id, Message: m}); err == nil {
			l.queue = out
		}
	}
	if err != nil {
		closeFD(fd)
		return err
	}
	if fd >= 0 {
		l.queued = append(l.queued, passing{fd: fd, end: len(l.queue)})
	}
	l.wake.Signal()
	return nil
}

// Receive returns the next frame and the descriptor that accompanies it, or -1; the caller owns the descriptor. The
// frame's byte slices are the caller's too. After an error the link is of no further use.
func (l *Link) Receive() (Frame, int, error) {
	var header [4]byte
	if _, err := io.ReadFull(l.reader, header[:]); err != nil {
		return Frame{}, -1, err
	}
	size := binary.BigEndian.Uint32(header[:])
	if size > MaxFrame {
		return Frame{}, -1, fmt.Errorf("%w: frame of %d bytes, at most %d", ErrTooLarge, size, MaxFrame)
	}
	if size < headerSize-4 {
		return Frame{}, -1, fmt.Errorf("%w: frame of %d bytes, at least %d", ErrMalformed, size, headerSize-4)
	}
	body := make([]byte, size)
	if _, err := io.ReadFull(l.reader, body); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return Frame{}, -1, err
	}
	f, err := Decode(body)
	if err != nil {
		return Frame{}, -1, err
	}
	fd := -1
	if f.Message.Kind().Carries() {
		var ok bool
		if fd, ok = l.fds.take(); !ok {
			return Frame{}, -1, fmt.Errorf("%w: %v came without its descriptor", ErrMalformed, f.Message.Kind())
		}
	}
	return f, fd, nil
}

// Close ends the link at once; what is still queued is dropped. It waits for the writing goroutine.
func (l *Link) Close() error {
	l.mu.Lock()
	l.fail(net.ErrClosed)
	l.mu.Unlock()
	<-l.done
	l.fds.close()
	return nil
}

// Drain waits until everything queued has been written, or the link has failed, or limit has passed.
func (l *Link) Drain(limit time.Duration) {
	expired := false
	t := time.AfterFunc(limit, func() {
		l.mu.Lock()
		expired = true
		l.mu.Unlock()
		l.wake.Broadcast()
	})
	defer t.Stop()
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.err == nil && !expired && (l.writing || len(l.queue) > 0) {
		l.wake.Wait()
	}
}

// RemoteAddr returns the peer's address.
func (l *Link) RemoteAddr() net.Addr { return l.conn.RemoteAddr() }

// fail marks the link as failed and closes its connection. l.mu is held.
func (l *Link) fail(err error) {
	if l.err != nil {
		return
	}
	l.err = err
	_ = l.conn.Close()
	l.wake.Broadcast()
}

// write writes what is queued until the link fails.
func (l *Link) write() {
	defer close(l.done)
	var spare []byte
	var spareFDs []passing
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		for l.err == nil && len(l.queue) == 0 {
			l.wake.Wait()
		}
		batch, fds := l.queue, l.queued
		if l.err != nil {
			closePassing(fds)
			l.queue, l.queued = nil, nil
			return
		}
		l.queue, l.queued = spare[:0], spareFDs[:0]
		l.writing = true
		l.mu.Unlock()
		err := l.writeBatch(batch, fds)
		closePassing(fds)
		l.mu.Lock()
		l.writing = false
		if err != nil {
			l.fail(err)
		}
		if spare = batch; cap(spare) > 4*ChunkSize {
			spare = nil
		}
		spareFDs = fds
		l.wake.Broadcast()
	}
}

// writeBatch writes b in pieces, each with its own deadline: what counts is that the peer goes on reading.
func (l *Link) writeBatch(b []byte, fds []passing) error {
	deadline := time.Now().Add(writeTimeout)
	if err := l.conn.SetWriteDeadline(deadline); err != nil {
		return err
	}
	if l.unix != nil && len(fds) > 0 {
		return writeFDs(l.unix, b, fds, deadline)
	}
	for len(b) > 0 {
		n, err := l.conn.Write(b[:min(len(b), writePiece)])
		if err != nil {
			return err
		}
		b = b[n:]
		now := time.Now()
		l.progress.Store(now.UnixNano())
		if err := l.conn.SetWriteDeadline(now.Add(writeTimeout)); err != nil {
			return err
		}
	}
	return nil
}

// Progress returns when the link last wrote something; the zero time when it has not yet.
func (l *Link) Progress() time.Time {
	if n := l.progress.Load(); n != 0 {
		return time.Unix(0, n)
	}
	return time.Time{}
}

// Backlog returns how many bytes wait to be written.
func (l *Link) Backlog() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.queue)
}
