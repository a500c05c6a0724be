// SPDX-License-Identifier: Apache-2.0

package handoff

import (
	"errors"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rehome-net/rehome/tcprepair"
)

// maxWrite bounds what one step of a Write hands to the kernel, in bytes, so that a pause does not wait for a large one.
const maxWrite = 1 << 20

// Conn is a TCP connection that can move to another host. It is a net.Conn, safe for concurrent use like a
// *net.TCPConn, which it resembles in every respect while nothing moves.
//
// When a move begins, calls that wait for the network are parked inside the call and new calls wait; deadlines go on
// counting. How it ends, see ErrMigrated and the package's documentation.
type Conn struct {
	tcp     *net.TCPConn // nil until adopted
	reading lane
	writing lane
	// pauses is the number of pauses so far: who was expelled by one sees it change.
	pauses atomic.Uint32
	// writeMu keeps a Write in one piece, even when it was parked in its middle.
	writeMu sync.Mutex
	// frames follows the bytes read, in their order by readMu; nil unless the listener serves HTTP.
	frames framer
	readMu sync.Mutex
	// drained holds a token when a shut lane may have become empty, ready when ExportReady was called for an export.
	drained, ready chan struct{}
	// moving is set from the beginning of an export until its Exporter has returned and the outcome is sent.
	moving atomic.Bool
	value  atomic.Pointer[any]

	flow          tcprepair.Flow
	local, remote net.Addr
	state         State
	isImported    bool
	epoch         uint32
	since         time.Time
	onEnd         func(*Conn) // called once the connection is over for this process

	mu          sync.Mutex
	phase       phase
	socket      int           // the imported socket until it is adopted, else -1
	wake        chan struct{} // closed when phase or a deadline changes; nil when nobody waits
	exportWaits bool          // an export asks for a good point
	exportReady bool          // ExportReady was called since the Exporter was last asked
}

// newConn returns a serving Conn over an accepted connection.
func newConn(tcp *net.TCPConn, onEnd func(*Conn)) *Conn {
	c := &Conn{
		tcp: tcp, drained: make(chan struct{}, 1), ready: make(chan struct{}, 1), onEnd: onEnd,
		local: tcp.LocalAddr(), remote: tcp.RemoteAddr(), epoch: 1, since: time.Now(), socket: -1, phase: serving,
	}
	c.flow = flowOf(c.local, c.remote)
	return c
}

func flowOf(local, remote net.Addr) tcprepair.Flow {
	l, _ := local.(*net.TCPAddr)
	r, _ := remote.(*net.TCPAddr)
	if l == nil || r == nil {
		return tcprepair.Flow{}
	}
	return tcprepair.NewFlow(l.AddrPort(), r.AddrPort())
}

// Read implements net.Conn.
func (c *Conn) Read(b []byte) (int, error) {
	if c.frames != nil {
		c.readMu.Lock()
		defer c.readMu.Unlock()
	}
	for {
		pauses := c.pauses.Load()
		if !c.enter(&c.reading) {
			if err := c.park(&c.reading); err != nil {
				return 0, c.opError("read", err)
			}
			continue
		}
		n, err := c.tcp.Read(b)
		if n > 0 {
			c.reading.bytes.Add(uint64(n))
			if c.frames != nil {
				c.frames.advance(b[:n])
			}
		}
		c.leave(&c.reading)
		if err != nil && n == 0 && c.interrupted(err, pauses) {
			continue
		}
		return n, err
	}
}

// Write implements net.Conn. When it returns ErrMigrated, n bytes have been sent, here and for good; what Export
// made of Conn.BytesWritten decides what the other host sends next.
func (c *Conn) Write(b []byte) (n int, err error) {
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	for {
		pauses := c.pauses.Load()
		if !c.enter(&c.writing) {
			if err := c.park(&c.writing); err != nil {
				return n, c.opError("write", err)
			}
			continue
		}
		step, err := c.tcp.Write(b[n:min(len(b), n+maxWrite)])
		n += step
		c.writing.bytes.Add(uint64(step))
		c.leave(&c.writing)
		switch {
		case err != nil && c.interrupted(err, pauses):
		case err != nil || n == len(b):
			return n, err
		}
	}
}

// enter, leave and interrupted are the turnstile of every call.
func (c *Conn) enter(l *lane) bool {
	ok, empty := l.enter()
	if empty {
		c.signalDrained()
	}
	return ok
}

func (c *Conn) leave(l *lane) {
	if l.leave() {
		c.signalDrained()
	}
}

// interrupted reports whether err may come from a pause that began since there had been the given number of them, read
// before entering. If it was the application's own deadline all the same, the next attempt says so again.
func (c *Conn) interrupted(err error, pauses uint32) bool {
	return c.pauses.Load() != pauses && errors.Is(err, os.ErrDeadlineExceeded)
}

func (c *Conn) signalDrained() {
	select {
	case c.drained <- struct{}{}:
	default:
	}
}

// park waits until calls may pass, and returns nil then; the phase's error if they never will; and
// os.ErrDeadlineExceeded at the application's deadline for lane l, nil meaning that there is none.
func (c *Conn) park(l *lane) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.phase.parks() {
		var expired <-chan time.Time
		if l != nil && !l.deadline.IsZero() {
			left := time.Until(l.deadline)
			if left <= 0 {
				return os.ErrDeadlineExceeded
			}
			t := time.NewTimer(left)
			defer t.Stop()
			expired = t.C
		}
		if c.wake == nil {
			c.wake = make(chan struct{})
		}
		wake := c.wake
		c.mu.Unlock()
		select {
		case <-wake:
		case <-expired:
		}
		c.mu.Lock()
	}
	return c.phase.err()
}

// step applies e and wakes who waits for it. c.mu is held.
func (c *Conn) step(e event) bool {
	p, ok := c.phase.next(e)
	if ok {
		c.phase = p
		c.broadcast()
	}
	return ok
}

func (c *Conn) broadcast() {
	if c.wake != nil {
		close(c.wake)
		c.wake = nil
	}
}

// Close implements net.Conn. Closing a connection that is being moved takes effect if it stays here.
func (c *Conn) Close() error {
	c.mu.Lock()
	was := c.phase
	ok := c.step(eventClose)
	var err error
	switch {
	case was == migrated || was == abandoned: // The socket is closed already.
	case !ok:
		err = c.opError("close", net.ErrClosed)
	case c.phase == closed:
		err = c.closeSocket()
	}
	over := ok && c.phase == closed
	c.mu.Unlock()
	if over {
		c.onEnd(c)
	}
	return err
}

// closeSocket closes the socket; c.mu is held.
func (c *Conn) closeSocket() error {
	if c.tcp == nil {
		closeFD(c.socket)
		c.socket = -1
		return nil
	}
	return c.tcp.Close()
}

// BytesRead returns how many bytes have been read from the connection since it was first accepted, on whatever host.
func (c *Conn) BytesRead() uint64 { return c.reading.bytes.Load() }

// BytesWritten returns how many bytes have been written to the connection since it was first accepted, on
// whatever host.
func (c *Conn) BytesWritten() uint64 { return c.writing.bytes.Load() }

// Imported reports whether the connection has been served before, on another host. One that a dispatcher has accepted has not.
func (c *Conn) Imported() bool { return c.isImported }

// State returns the State with which the connection was imported, zero for one accepted here.
func (c *Conn) State() State { return c.state }

// SetValue attaches what the server knows of the connection, for its Exporter to find by Value. The package does
// not look at it.
func (c *Conn) SetValue(v any) { c.value.Store(&v) }

// Value returns what SetValue attached last, nil at first.
func (c *Conn) Value() any {
	if v := c.value.Load(); v != nil {
		return *v
	}
	return nil
}

// Flow returns the connection's addresses as the client's packets bear them.
func (c *Conn) Flow() tcprepair.Flow { return c.flow }

// LocalAddr implements net.Conn.
func (c *Conn) LocalAddr() net.Addr { return c.local }

// RemoteAddr implements net.Conn.
func (c *Conn) RemoteAddr() net.Addr { return c.remote }

func (c *Conn) opError(op string, err error) error {
	return &net.OpError{Op: op, Net: "tcp", Source: c.local, Addr: c.remote, Err: err}
}
