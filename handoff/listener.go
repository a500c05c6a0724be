// SPDX-License-Identifier: Apache-2.0

package handoff

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/handoff/wire"
	"github.com/rehome-net/rehome/tcprepair"
)

// What Serve waits when a connection cannot be accepted, as net/http does: the pause doubles.
const (
	shortestPause = 5 * time.Millisecond
	longestPause  = time.Second
)

// Listener is a net.Listener whose connections can move to another host, and arrive from one.
type Listener struct {
	tcp      *net.TCPListener
	cfg      Config
	accepted chan accepted
	ready    chan struct{} // holds a token when arrived is not empty
	done     chan struct{} // closed by Close
	agent    *registration
	wg       sync.WaitGroup

	mu      sync.Mutex
	conns   map[tcprepair.Flow]*Conn
	arrived []*Conn // imported and live, for Accept
	closed  bool
}

type accepted struct {
	conn *Conn
	err  error
}

// Listen announces on a local TCP address, like net.Listen with network "tcp", "tcp4" or "tcp6", with Multipath TCP off.
// ctx bounds only Listen itself. It does not wait for an agent: the listener works with and without one.
func Listen(ctx context.Context, network, address string, cfg Config) (*Listener, error) {
	switch network {
	case "tcp", "tcp4", "tcp6":
	default:
		return nil, fmt.Errorf("listen: network %q: want tcp, tcp4 or tcp6", network)
	}
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	lc := net.ListenConfig{}
	lc.SetMultipathTCP(false)
	ln, err := lc.Listen(ctx, network, address)
	if err != nil {
		return nil, err
	}
	tcp, ok := ln.(*net.TCPListener)
	if !ok {
		_ = ln.Close()
		return nil, fmt.Errorf("listen: %T is no TCP listener", ln)
	}
	return start(tcp, cfg), nil
}

// Wrap is Listen for a listener that exists already, from socket activation or with options of its own. It owns ln unless
// it returns an error. ErrMultipath: ln must be without Multipath TCP, which is Go's default.
func Wrap(ln *net.TCPListener, cfg Config) (*Listener, error) {
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("wrap: %w", err)
	}
	multipath, err := isMultipath(ln)
	if err != nil {
		return nil, fmt.Errorf("wrap: %w", err)
	}
	if multipath {
		return nil, fmt.Errorf("wrap: %w", ErrMultipath)
	}
	return start(ln, cfg), nil
}

func start(tcp *net.TCPListener, cfg Config) *Listener {
	l := &Listener{
		tcp: tcp, cfg: cfg.withDefaults(), conns: map[tcprepair.Flow]*Conn{},
		accepted: make(chan accepted), ready: make(chan struct{}, 1), done: make(chan struct{}),
	}
	if l.cfg.Unsent > 0 {
		if err := boundUnsent(tcp, l.cfg.Unsent); err != nil {
			l.cfg.Logger.Warn("connections will move more slowly", "error", err)
		}
	}
	l.agent = newRegistration(l)
	l.wg.Add(1)
	go l.acceptLoop()
	go l.agent.run()
	return l
}

// Accept returns the next connection, a *Conn: a new one, or one that arrived from another host.
func (l *Listener) Accept() (net.Conn, error) {
	c, err := l.AcceptConn()
	if err != nil {
		return nil, err
	}
	return c, nil
}

// AcceptConn is Accept without the need to convert its result.
func (l *Listener) AcceptConn() (*Conn, error) { return l.acceptAfter(time.Time{}) }

// acceptAfter is AcceptConn, but takes no new connection before notBefore. Those that arrive from another host do not wait.
func (l *Listener) acceptAfter(notBefore time.Time) (*Conn, error) {
	accepted := l.accepted
	var pause <-chan time.Time
	if wait := time.Until(notBefore); wait > 0 {
		t := time.NewTimer(wait)
		defer t.Stop()
		accepted, pause = nil, t.C
	}
	for {
		if c := l.takeArrived(); c != nil {
			return c, nil
		}
		select {
		case a := <-accepted:
			return a.conn, a.err
		case <-pause:
			accepted = l.accepted
		case <-l.ready:
		case <-l.done:
			return nil, &net.OpError{Op: "accept", Net: l.Addr().Network(), Addr: l.Addr(), Err: net.ErrClosed}
		}
	}
}

// Serve calls handle with every connection, each in a goroutine of its own, and closes the connection when handle returns. It ends with Accept's
// error, once the listener is closed; what handle is busy with then goes on. While the machine has no descriptor or memory for a new
// connection, Serve tries again, after 5 ms at first and 1 s at most.
func (l *Listener) Serve(handle func(*Conn)) error {
	var pause time.Duration
	var notBefore time.Time
	for {
		c, err := l.acceptAfter(notBefore)
		if passes(err) {
			pause = min(max(2*pause, shortestPause), longestPause)
			notBefore = time.Now().Add(pause)
			l.cfg.Logger.Warn("cannot accept a connection", "again in", pause, "error", err)
			continue
		}
		if err != nil {
			return err
		}
		if !time.Now().Before(notBefore) {
			pause = 0
		}
		go func() {
			defer c.Close() //nolint:errcheck // after a move there is nothing to close
			handle(c)
		}()
	}
}

// passes reports whether accept may succeed a little later: the machine is short of something, or the connection itself failed (accept(2)).
func passes(err error) bool {
	return slices.ContainsFunc([]error{
		unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM, unix.EPERM, unix.ECONNABORTED, unix.EPROTO,
		unix.ENETDOWN, unix.ENETUNREACH, unix.EHOSTDOWN, unix.EHOSTUNREACH,
	}, func(e error) bool { return errors.Is(err, e) })
}

// acceptLoop takes new connections out of the kernel, one ahead of Accept.
func (l *Listener) acceptLoop() {
	defer l.wg.Done()
	for {
		tcp, err := l.tcp.AcceptTCP()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		a := accepted{err: err}
		if err == nil {
			a.conn = newConn(tcp, l.forget)
			if l.cfg.framing != nil {
				a.conn.frames = l.cfg.framing()
			}
			l.remember(a.conn)
		}
		select {
		case l.accepted <- a:
		case <-l.done:
			if a.conn != nil {
				_ = a.conn.Close()
			}
			return
		}
	}
}

func (l *Listener) takeArrived() *Conn {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.arrived) == 0 {
		return nil
	}
	c := l.arrived[0]
	l.arrived[0] = nil
	l.arrived = l.arrived[1:]
	if len(l.arrived) > 0 {
		l.signalArrived()
	}
	return c
}

// deliver gives a live imported connection to Accept. When nobody can accept any more it is closed, as the kernel
// closes what is left in a listener's queue.
func (l *Listener) deliver(c *Conn) {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		_ = c.Close()
		return
	}
	l.arrived = append(l.arrived, c)
	l.signalArrived()
	l.mu.Unlock()
}

func (l *Listener) signalArrived() {
	select {
	case l.ready <- struct{}{}:
	default:
	}
}

// Close stops listening and ends the registration with the agent. Connections go on, but do not move any more; moves
// under way are finished. Imported connections that nobody has accepted are closed.
func (l *Listener) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return &net.OpError{Op: "close", Net: l.Addr().Network(), Addr: l.Addr(), Err: net.ErrClosed}
	}
	l.closed = true
	close(l.done)
	arrived := l.arrived
	l.arrived = nil
	l.mu.Unlock()
	err := l.tcp.Close()
	l.wg.Wait()
	for _, c := range arrived {
		_ = c.Close()
	}
	l.agent.close()
	return err
}

// Addr returns the address listened on.
func (l *Listener) Addr() net.Addr { return l.tcp.Addr() }

// Registered reports whether an agent knows of the listener at present, so that connections can move.
func (l *Listener) Registered() bool { return l.agent.registered.Load() }

func (l *Listener) remember(c *Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conns[c.flow] = c
}

// forget drops a connection that is over. Another one may have its addresses by now.
func (l *Listener) forget(c *Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conns[c.flow] == c {
		delete(l.conns, c.flow)
	}
}

func (l *Listener) find(f tcprepair.Flow) *Conn {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.conns[f]
}

// list returns the listener's connections, the oldest first.
func (l *Listener) list() []*Conn {
	l.mu.Lock()
	all := make([]*Conn, 0, len(l.conns))
	for _, c := range l.conns {
		all = append(all, c)
	}
	l.mu.Unlock()
	slices.SortFunc(all, func(a, b *Conn) int { return cmp.Compare(a.since.UnixNano(), b.since.UnixNano()) })
	return all
}

// status describes c for the agent.
func (c *Conn) status(service string, movable bool) wire.FlowStatus {
	return wire.FlowStatus{Flow: c.flow, Service: service, Epoch: c.epoch, Age: ageOf(c.since), Movable: movable}
}
