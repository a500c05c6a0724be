// SPDX-License-Identifier: Apache-2.0

package reqsk

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/tcprepair"
)

// timeWait is TCP_TIME_WAIT.
const timeWait = 6

const (
	// attempts bounds how often a first segment is tried: each failure of the kind that is tried again is told apart by the next try.
	attempts = 3
	// resend is how long a segment that the server's socket has not taken is given: it may be busy.
	resend = 10 * time.Millisecond
	// pollMin and pollMax are between two looks at a socket that has no room.
	pollMin = 20 * time.Microsecond
	pollMax = time.Millisecond
)

// Inject makes the connection appear in the accept queue of the listening socket that the kernel chooses for its local address, with what
// the client has sent in its receive queue. The network must bring the client's packets here by now: the server may answer before Inject returns.
//
// Nil means that the connection has been made and has taken everything; the server may have ended it already. Any error but ErrReset and
// ErrUncertain means that it has not been made, or is unmade (ErrPartial), and the client has heard nothing.
func (in *Injector) Inject(s *tcprepair.Snapshot) error {
	err := in.inject(s)
	if err != nil {
		return &OpError{Op: "inject", Flow: s.Flow, Err: err}
	}
	return nil
}

func (in *Injector) inject(s *tcprepair.Snapshot) error {
	t, err := newStream(s)
	if err != nil {
		return err
	}
	if !in.take(t.flow) {
		return fmt.Errorf("%w: it is being injected", ErrExists)
	}
	defer in.give(t.flow)
	select {
	case <-in.closed:
		return ErrClosed
	default:
	}
	select {
	case <-in.closed:
		return ErrClosed
	case l := <-in.lanes:
		defer func() { in.lanes <- l }()
		l.set(t)
		first, err := in.first(l, t)
		if err != nil {
			return err
		}
		return in.rest(l, t, first)
	}
}

func (in *Injector) take(f tcprepair.Flow) bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	if _, busy := in.flights[f]; busy {
		return false
	}
	in.flights[f] = struct{}{}
	return true
}

func (in *Injector) give(f tcprepair.Flow) {
	in.mu.Lock()
	defer in.mu.Unlock()
	delete(in.flights, f)
}

// first makes the connection, with as much of the stream as it can begin with. It returns how much.
func (in *Injector) first(l *lane, t *stream) (int, error) {
	n := min(len(t.data), t.maxPayload())
	lost := false
	for range attempts {
		a, err := l.send(t, reqskOpOP_INJECT, t.segment(0, n))
		if err != nil {
			return 0, err
		}
		switch {
		case lost && a.result == reqskResultRESULT_EXISTS:
			// There was none at the first attempt: it is this one.
			return t.end(n), nil
		case a.result == reqskResultRESULT_PASSED:
			made, err := in.outcome(l, t, a)
			switch {
			case err != nil:
				return 0, err
			case made:
				return t.end(n), nil
			case lost:
				return 0, in.lost(t)
			}
			// What the program has not seen, such as a queue that filled up in between, it sees the next time.
			lost = true
		case a.result == reqskResultRESULT_WINDOW:
			if a.window == 0 {
				return 0, ErrPartial
			}
			n = min(n, int(a.window))
		case a.result == reqskResultRESULT_TIME_WAIT:
			if err := in.outlive(t, a); err != nil {
				return 0, err
			}
		default:
			return 0, in.refusal(a.result)
		}
	}
	return 0, fmt.Errorf("%w: %d attempts", ErrRefused, attempts)
}

// outcome says whether the connection exists, or has existed, now that the program has passed its first segment on.
func (in *Injector) outcome(l *lane, t *stream, a answer) (made bool, err error) {
	switch {
	case a.outcome == reqskOutcomeOUTCOME_MADE:
		return true, nil
	case a.outcome == reqskOutcomeOUTCOME_ENDED:
		// inet_child_forget sends a RST, over IPv4 to 0.0.0.0: the child of a cookie has no addresses to send to yet (Linux 6.18).
		return false, fmt.Errorf("%w: the kernel gave it up at once: the listening socket was closed at the same moment, or memory is short", ErrReset)
	case a.outcome == reqskOutcomeOUTCOME_NONE && in.certain:
		return false, nil
	}
	// The server may have it in its hands, and the segment wait for that (BORN); or nobody has looked.
	b, err := l.check(t)
	switch {
	case err != nil:
		return false, errors.Join(ErrUncertain, err)
	case b.result != reqskResultRESULT_FOUND:
		return false, ErrUncertain
	}
	return true, nil
}

// outlive removes what an earlier connection of the same addresses has left, if this one is younger (RFC 6191).
func (in *Injector) outlive(t *stream, a answer) error {
	if int32(t.seq-a.received) <= 0 {
		return fmt.Errorf("%w: it has ended (TIME_WAIT)", ErrExists)
	}
	if err := in.diag.destroy(t.flow); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("%w: an earlier one with the same addresses is in TIME_WAIT: %w", ErrExists, err)
	}
	return nil
}

// refusal translates what the program says.
func (in *Injector) refusal(r reqskResult) error {
	switch r {
	case reqskResultRESULT_NO_LISTENER:
		return ErrNoListener
	case reqskResultRESULT_EXISTS:
		return ErrExists
	case reqskResultRESULT_MPTCP:
		return ErrMPTCP
	case reqskResultRESULT_BACKLOG:
		return ErrBacklog
	case reqskResultRESULT_SYNCOOKIES:
		return ErrSyncookies
	case reqskResultRESULT_NONE:
		// Not received yet, it seems, and it may be.
		return fmt.Errorf("%w: the segment was not received at once: is packet steering (rps_cpus) on for %s?", ErrUncertain, in.device.name)
	case reqskResultRESULT_ERRNO + reqskResult(unix.EINVAL):
		return fmt.Errorf("%w: one of net.ipv4.tcp_window_scaling, tcp_sack, tcp_timestamps is 0 here and was 1 where the connection was accepted", ErrOption)
	}
	if r > reqskResultRESULT_ERRNO {
		return fmt.Errorf("%w: %w", ErrRefused, unix.Errno(r-reqskResultRESULT_ERRNO))
	}
	return fmt.Errorf("%w: result %d", ErrRefused, r)
}

// lost says why a first segment did not come as far as TCP, or no further than its beginning.
func (in *Injector) lost(t *stream) error {
	if routes, err := in.nl.RouteGet(t.flow.Local.Addr().AsSlice()); err != nil || len(routes) == 0 || routes[0].Type != unix.RTN_LOCAL {
		return fmt.Errorf("%w: %v is not on this host", ErrAddress, t.flow.Local.Addr())
	}
	if _, err := in.nl.RouteGet(t.flow.Remote.Addr().AsSlice()); err != nil {
		return fmt.Errorf("%w: no route to the client: %w", ErrAddress, err)
	}
	if !t.ipv6() {
		if err := reversePath(in.rpFilter); err != nil {
			return err
		}
	}
	return fmt.Errorf("%w: the segment was dropped on its way to TCP: does a firewall filter what enters by %s?", ErrRefused, in.device.name)
}

// rest brings what the first segment had no room for, and returns when the socket has everything.
func (in *Injector) rest(l *lane, t *stream, sent int) error {
	var (
		wait     = pollMin
		progress = time.Now()
		last     = progress // when something was sent
		furthest uint32
		probed   bool
	)
	for {
		a, err := l.check(t)
		if err != nil {
			return in.undo(l, t, err)
		}
		if a.result != reqskResultRESULT_FOUND || a.state == timeWait {
			return ended(t, sent)
		}
		has := a.received - t.seq
		switch {
		case has >= uint32(t.end(len(t.data))):
			return nil
		case has > furthest:
			furthest, progress, wait = has, time.Now(), pollMin
		}
		from := int(has)
		now := time.Now()
		if !probed && from >= sent && t.room(a.window, from) < min(len(t.data)-from, t.maxPayload()) {
			// It would say 40 ms later that it has room.
			probed = true
			if _, err := l.send(t, reqskOpOP_FOLLOW, t.probe()); err != nil {
				return in.undo(l, t, err)
			}
			continue
		}
		if n := t.room(a.window, from); n >= 0 && (from >= sent || now.Sub(last) > resend) {
			if _, err := l.send(t, reqskOpOP_FOLLOW, t.segment(from, n)); err != nil {
				return in.undo(l, t, err)
			}
			sent, last = t.end(from+n), now
			continue
		}
		if now.Sub(progress) > in.config.Patience {
			return in.undo(l, t, fmt.Errorf("%w: %d of %d bytes taken, none for %v", ErrPartial, has, len(t.data), in.config.Patience))
		}
		time.Sleep(wait)
		wait = min(2*wait, pollMax)
	}
}

// ended is about a connection that is no more: the server has ended it, as servers may.
func ended(t *stream, sent int) error {
	if sent >= len(t.data) {
		return nil
	}
	return fmt.Errorf("%w: the server has ended it after %d of %d bytes", ErrReset, sent, len(t.data))
}

// undo takes back a connection that has not got everything, because of err. The server sees it reset.
func (in *Injector) undo(l *lane, t *stream, err error) error {
	for range attempts {
		a, failed := l.check(t)
		switch {
		case failed != nil:
			return errors.Join(ErrReset, err, failed)
		case a.result != reqskResultRESULT_FOUND || a.state == timeWait:
			return err
		case a.sent != t.ack:
			// The client has part of an answer, so it must be told as well.
			if failed := in.diag.destroy(t.flow); failed != nil && !errors.Is(failed, unix.ENOENT) {
				return fmt.Errorf("%w: %w; the server's socket is still there: %w", ErrReset, err, failed)
			}
			return fmt.Errorf("%w: the server had answered: %w", ErrReset, err)
		}
		if _, failed := l.send(t, reqskOpOP_FOLLOW, segment{seq: a.received, ack: t.ack, flags: flagRST | flagACK}); failed != nil {
			return errors.Join(ErrReset, err, failed)
		}
	}
	if failed := in.diag.destroy(t.flow); failed != nil && !errors.Is(failed, unix.ENOENT) {
		return fmt.Errorf("%w: %w; the server's socket is still there: %w", ErrReset, err, failed)
	}
	return fmt.Errorf("%w: %w", ErrReset, err)
}
