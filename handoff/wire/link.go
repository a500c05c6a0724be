// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"bufio"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// maxQueued bounds what waits to be written to one peer; a peer that lets more pile up is given up.
	maxQueued = 256 << 20
	// writeTimeout bounds one write to a peer, of writePiece bytes at most.
	writeTimeout = 10 * time.Second
	writePiece   = 1 << 20
	// inlineBytes is how much Flush writes itself, if no more than that is under way: a socket's buffer has room for both.
	inlineBytes = 16 << 10
)

// ErrOverrun means that the peer does not read what is sent to it.
var ErrOverrun = errors.New("wire: peer does not read")

// Link carries frames over one connection: TCP, TLS or a UNIX stream socket, and over the last also descriptors.
// Send never blocks: one goroutine writes what has been queued, so that frames queued together leave together; that is
// how many migrations share a system call and a TLS record. Who has nothing else to do just now uses Queue and Flush instead,
// which saves the change of goroutines. Receive is for one goroutine.
type Link struct {
	conn   net.Conn
	raw    syscall.RawConn // nil when the connection has no descriptor
	unix   *prompt         // nil unless descriptors can travel
	reader *bufio.Reader
	fds    fdQueue

	progress atomic.Int64 // time of the last write, in nanoseconds since 1970

	mu sync.Mutex
	// wake is for the writing goroutine, written for who waits until something has left.
	wake, written *sync.Cond

	queue  []byte
	queued []passing // descriptors that go with queue
	// writing is set while a batch taken from queue is on its way. spare are the last batch's buffers.
	writing  bool
	spare    []byte
	spareFDs []passing
	err      error
	done     chan struct{}
}

// NewLink returns a link over conn and owns conn.
func NewLink(conn net.Conn) *Link {
	l := &Link{conn: conn, done: make(chan struct{})}
	l.wake, l.written = sync.NewCond(&l.mu), sync.NewCond(&l.mu)
	l.raw = rawOf(conn)
	var source io.Reader = conn
	if _, ok := conn.(*net.UnixConn); ok {
		l.unix = newPrompt(conn, l.raw)
		l.conn = l.unix
		source = &fdReader{conn: l.unix, fds: &l.fds}
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
	if err := l.add(id, m, fd); err != nil {
		return err
	}
	l.wake.Signal()
	return nil
}

// Queue is SendFD for a caller that will call Flush soon: until then the frame may stay where it is.
func (l *Link) Queue(id uint64, m Message, fd int) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.add(id, m, fd)
}

// SendNow is SendFD for a frame that a frozen connection waits for: it is written before SendNow returns, if that is done without waiting.
func (l *Link) SendNow(id uint64, m Message, fd int) error {
	if err := l.Queue(id, m, fd); err != nil {
		return err
	}
	l.Flush()
	return nil
}

// Flush sees to it that what has been queued leaves: it writes it now if that is done without waiting, else the writing goroutine does.
func (l *Link) Flush() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil || l.writing || len(l.queue) == 0 {
		return // or whoever writes now will find it
	}
	if len(l.queue) > inlineBytes || !l.idle() {
		l.wake.Signal()
		return
	}
	l.writeQueue(false)
	if len(l.queue) > 0 || l.err != nil {
		l.wake.Signal()
	}
}

// idle reports whether a short write is sure to find room in the socket.
func (l *Link) idle() bool {
	if l.raw == nil {
		return false
	}
	free := false
	err := l.raw.Control(func(fd uintptr) {
		n, errno := unsent(fd)
		free = errno == 0 && n <= inlineBytes
	})
	return err == nil && free
}

// add puts a frame into the queue. l.mu is held.
func (l *Link) add(id uint64, m Message, fd int) error {
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

// More reports whether part of another frame has arrived, so that Receive is likely to return soon.
func (l *Link) More() bool { return l.reader.Buffered() > 0 }

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
		l.written.Broadcast()
	})
	defer t.Stop()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.wake.Signal() // for what was queued and not flushed
	for l.err == nil && !expired && (l.writing || len(l.queue) > 0) {
		l.written.Wait()
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
	l.wake.Signal()
	l.written.Broadcast()
}

// write writes what is queued until the link fails.
func (l *Link) write() {
	defer close(l.done)
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		for l.writing || l.err == nil && len(l.queue) == 0 {
			l.wake.Wait()
		}
		if l.err != nil {
			closePassing(l.queued)
			l.queue, l.queued = nil, nil
			return
		}
		l.writeQueue(true)
	}
}

// writeQueue writes what is queued; mayWait: the peer may have to read first. l.mu is held, but not while it writes.
func (l *Link) writeQueue(mayWait bool) {
	batch, fds := l.queue, l.queued
	l.queue, l.queued = l.spare[:0], l.spareFDs[:0]
	l.spare, l.spareFDs = nil, nil
	l.writing = true
	l.mu.Unlock()
	err := l.writeBatch(batch, fds, mayWait)
	closePassing(fds)
	l.mu.Lock()
	l.writing = false
	if err != nil {
		l.fail(err)
	}
	if cap(batch) <= 4*ChunkSize {
		l.spare = batch
	}
	l.spareFDs = fds
	l.written.Broadcast()
}

// rawOf returns the descriptor of a connection, or of the one that TLS runs over.
func rawOf(conn net.Conn) syscall.RawConn {
	if t, ok := conn.(*tls.Conn); ok {
		conn = t.NetConn()
	}
	c, ok := conn.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return nil
	}
	return raw
}

// writeBatch writes b in pieces, each with its own deadline: what counts is that the peer goes on reading. A write that cannot wait needs
// no deadline, and none is left behind for it.
func (l *Link) writeBatch(b []byte, fds []passing, mayWait bool) (err error) {
	deadline := time.Now().Add(writeTimeout)
	if mayWait {
		if err := l.conn.SetWriteDeadline(deadline); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, l.conn.SetWriteDeadline(time.Time{})) }()
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
		if len(b) > 0 {
			if err := l.conn.SetWriteDeadline(now.Add(writeTimeout)); err != nil {
				return err
			}
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

// Room waits until no more than limit bytes wait to be written, for a caller that sends more than a peer may leave unread. The error
// is why the link has ended.
func (l *Link) Room(limit int) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.err == nil && len(l.queue) > limit {
		l.written.Wait()
	}
	return l.err
}

// Backlog returns how many bytes wait to be written.
func (l *Link) Backlog() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.queue)
}
