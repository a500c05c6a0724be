// SPDX-License-Identifier: Apache-2.0

package tcprepair

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// RestoreConfig adjusts Restore. The zero value is ready to use.
type RestoreConfig struct {
	// BeforeConnect is called when the socket has everything but its connection. A sock_ops program sees the connection being made right
	// after, so this is where to register the socket's cookie (SO_COOKIE) for what it is to seed. An error ends the restore.
	BeforeConnect func(fd int) error
	// FreeBind lets the socket have a local address that is not on the host yet, or tentative (IP_FREEBIND).
	FreeBind bool
}

// Restored is a connection that has been rebuilt and is still frozen. It owns its file descriptor: one of Discard, Reset, Close
// and Disown ends that.
//
//	Restore ─► frozen ─ Thaw ─► alive ─ Close, Disown
//	             └ Discard (silent), Reset (RST)
//
// Before Thaw the descriptor may already be passed to the process that will serve it: what that process does too early fails with
// EPERM or EINVAL, and does no harm. A Restored is used by one goroutine at a time.
type Restored struct {
	sock socket
	// snap is nil once thawed.
	snap *Snapshot
	raw  rawSocket
	// grown tells which buffers are larger or more locked than they are to be in the end.
	grown bool
	flow  Flow
}

// Restore builds the connection anew on this host, in the caller's network namespace, and leaves it frozen. Nothing reaches the
// peer before Thaw, and if it fails nothing is left. The source must have discarded the connection first if it is on the same host.
//
// Repair mode does not stop timers: what is unacknowledged is sent again when the retransmission timeout ends, 0.2 s at the
// earliest, even if Thaw has not been called. Who waits that long between the two must keep the flow's packets on the host.
//
// It needs CAP_NET_ADMIN, and CAP_NET_RAW for a connection whose peer has sent FIN or acknowledged ours: those states are reached by a
// hand-made segment that this host sends to itself over lo, which must be up. What the kernel answers to it goes the same way, and is
// dropped there; only a timer that falls between the two may send an acknowledgement to the peer, of what it knows to be acknowledged.
//
// Errors: ErrPermission, ErrInUse (the connection exists here), ErrAddress (the local address does not), ErrUnsupported, ErrCorrupt.
func Restore(s *Snapshot, cfg RestoreConfig) (*Restored, error) {
	v := Reservation{sock: -1, outline: Outline{Flow: s.Flow, Mapped: s.Mapped, Options: s.Options}, cfg: cfg}
	err := s.validate(unlimited())
	if err == nil {
		err = v.build()
	}
	if err != nil {
		v.Close()
		return nil, &OpError{Op: "restore", Flow: s.Flow, Err: err}
	}
	return v.restore(s)
}

// unlimited are the limits of what need not be checked again.
func unlimited() Limits { return Limits{QueueBytes: 1<<31 - 1} }

// build makes the socket a connection again, in the one order that the kernel accepts: sequence numbers before connect, options after it and
// before the queues, the window when the queues are as long as they will be.
func (r *Restored) build(cfg RestoreConfig) error {
	if err := r.connect(cfg); err != nil {
		return err
	}
	if err := r.negotiate(); err != nil {
		return err
	}
	if err := r.fillQueues(); err != nil {
		return err
	}
	if err := r.halfClose(); err != nil {
		return err
	}
	if r.snap.AckDue && r.raw < 0 {
		// For Thaw, which must not depend on the namespace it is called in. It can do without: see acknowledge.
		r.raw, _ = openRaw(r.snap.Flow)
	}
	return nil
}

func (r *Restored) connect(cfg RestoreConfig) error {
	s := r.snap
	if err := r.sock.set(unix.IPPROTO_TCP, unix.TCP_QUEUE_SEQ, s.SendSeq); err != nil { // the reservation has selected it
		return fmt.Errorf("set TCP_QUEUE_SEQ of the send queue: %w", err)
	}
	if err := r.sock.selectQueue(queueReceive); err != nil {
		return fmt.Errorf("select the receive queue: %w", err)
	}
	if err := r.sock.set(unix.IPPROTO_TCP, unix.TCP_QUEUE_SEQ, s.ReceiveSeq); err != nil {
		return fmt.Errorf("set TCP_QUEUE_SEQ of the receive queue: %w", err)
	}
	if !s.Negotiated.WindowScaling {
		// Repair cannot take a scale away again. With a clamp that fits the header the kernel chooses none, as in a handshake.
		if err := r.sock.set(unix.IPPROTO_TCP, unix.TCP_WINDOW_CLAMP, 1<<16-1); err != nil {
			return fmt.Errorf("set TCP_WINDOW_CLAMP: %w", err)
		}
	}
	// The send MSS is computed in connect and, as long as the path MTU does not change, never again: without this it would stay at
	// the 536 bytes of a peer that said nothing, whatever TCP_REPAIR_OPTIONS says later.
	const smallest, largest = 88, 1<<15 - 1
	if err := r.sock.set(unix.IPPROTO_TCP, unix.TCP_MAXSEG, min(max(uint32(s.Negotiated.MSS), smallest), largest)); err != nil {
		return fmt.Errorf("set TCP_MAXSEG: %w", err)
	}
	if rate := s.Options.MaxPacingRate; rate != 0 {
		if err := r.sock.setUint64(unix.SOL_SOCKET, unix.SO_MAX_PACING_RATE, rate); err != nil {
			return fmt.Errorf("set SO_MAX_PACING_RATE: %w", err)
		}
	}
	if cfg.BeforeConnect != nil {
		if err := cfg.BeforeConnect(int(r.sock)); err != nil {
			return fmt.Errorf("before connect: %w", err)
		}
	}
	err := r.sock.connect(s.Flow.Remote, s.Mapped)
	if errors.Is(err, unix.EADDRNOTAVAIL) {
		return fmt.Errorf("%w: connect to %s: %w", ErrInUse, s.Flow.Remote, err)
	}
	if err != nil {
		return addressError("connect to "+s.Flow.Remote.String(), err)
	}
	return nil
}

func addressError(op string, err error) error {
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return fmt.Errorf("%w: %s: %w", ErrInUse, op, err)
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return fmt.Errorf("%w: %s: add the address to an interface and wait until it is not tentative: %w", ErrAddress, op, err)
	case errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENODEV):
		return fmt.Errorf("%w: %s: is there a route, and is the interface up: %w", ErrAddress, op, err)
	}
	return fmt.Errorf("%s: %w", op, err)
}

func permission(err error, capability string) error {
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("%w %s: %w", ErrPermission, capability, err)
	}
	return err
}

// negotiate restores what the handshake agreed upon.
func (r *Restored) negotiate() error {
	n := r.snap.Negotiated
	o := make([]repairOption, 0, 4)
	if n.SACK {
		o = append(o, repairOption{optSACK, 0})
	}
	if n.Timestamps {
		o = append(o, repairOption{optTimestamp, 0})
	}
	if n.WindowScaling {
		o = append(o, repairOption{optScale, uint32(n.SendScale) | uint32(n.ReceiveScale)<<16})
	}
	o = append(o, repairOption{optMSS, uint32(n.MSS)})
	if err := r.sock.setRepairOptions(o); err != nil {
		return fmt.Errorf("set TCP_REPAIR_OPTIONS %v: %w", o, err)
	}
	if n.Timestamps {
		if err := r.sock.set(unix.IPPROTO_TCP, unix.TCP_TIMESTAMP, r.snap.Timestamp); err != nil {
			return fmt.Errorf("set TCP_TIMESTAMP: %w", err)
		}
	}
	return nil
}

// fillQueues restores buffers, queues and window, and leaves no queue selected.
func (r *Restored) fillQueues() error {
	s, o := r.snap, &r.snap.Options
	if o.ReceiveBuffer != 0 {
		if err := r.force(unix.SO_RCVBUFFORCE, o.ReceiveBuffer); err != nil {
			return err
		}
	}
	if o.SendBuffer != 0 {
		if err := r.force(unix.SO_SNDBUFFORCE, o.SendBuffer); err != nil {
			return err
		}
	}
	if err := r.fill(s.Received, unix.SO_RCVBUFFORCE); err != nil { // the queue selected last
		return fmt.Errorf("fill the receive queue: %w", err)
	}
	if len(s.Unacked) > 0 {
		if err := r.sock.selectQueue(queueSend); err != nil {
			return fmt.Errorf("select the send queue: %w", err)
		}
		if err := r.fill(s.Unacked, unix.SO_SNDBUFFORCE); err != nil {
			return fmt.Errorf("fill the send queue: %w", err)
		}
	}
	w := s.Window
	if s.State.PeerClosed() {
		// The FIN is still to come: the window ends where it did, and holds it.
		if w.Announced == s.nextReceive() {
			w.Announced--
		}
		w.Receive++
	}
	if err := r.sock.setWindow(w); err != nil {
		return fmt.Errorf("set TCP_REPAIR_WINDOW to %+v: %w", w, err)
	}
	if o.WindowClamp != 0 {
		// A clamp that grows also lets the window start where it was, not at that of a new connection.
		if err := r.sock.set(unix.IPPROTO_TCP, unix.TCP_WINDOW_CLAMP, o.WindowClamp); err != nil {
			return fmt.Errorf("set TCP_WINDOW_CLAMP: %w", err)
		}
	}
	if err := r.sock.selectQueue(queueNone); err != nil {
		return fmt.Errorf("select no queue: %w", err)
	}
	return nil
}

// force sets a buffer to size bytes as getsockopt tells them, past the host's limits.
func (r *Restored) force(name int, size uint32) error {
	r.grown = true
	if err := r.sock.set(unix.SOL_SOCKET, name, size/2); err != nil { // the kernel doubles it
		return permission(fmt.Errorf("set buffer size (option %d) to %d: %w", name, size/2, err), "CAP_NET_ADMIN")
	}
	return nil
}

// fill writes all of b, without ever waiting. If the buffer is too small it is made large enough, once; after that
// the pieces are made smaller, down to a page, because memory may be short.
func (r *Restored) fill(b []byte, buffer int) error {
	const page, overhead = 4 << 10, 64 << 10
	piece, forced := len(b), false
	for len(b) > 0 {
		n, err := r.sock.send(b[:min(piece, len(b))])
		if err == nil {
			b = b[n:]
			continue
		}
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.ENOMEM) && !errors.Is(err, unix.ENOBUFS) {
			return err
		}
		switch {
		case !forced:
			forced = true
			var mem memInfo
			if err := r.sock.memory(&mem); err != nil {
				return fmt.Errorf("read SO_MEMINFO: %w", err)
			}
			// A small segment takes up to some times its size in memory.
			if err := r.force(buffer, min(mem.receiveAlloc+mem.sendQueued+4*uint32(len(b))+overhead, 1<<31-1)); err != nil {
				return err
			}
		case piece > page:
			piece /= 2
		default:
			return fmt.Errorf("%d bytes left: %w", len(b), err)
		}
	}
	return nil
}
