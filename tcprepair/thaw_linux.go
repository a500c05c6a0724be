// SPDX-License-Identifier: Apache-2.0

package tcprepair

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// FD returns the descriptor, which stays owned by r. It is -1 after Disown, Discard, Reset or Close.
func (r *Restored) FD() int { return int(r.sock) }

// Flow returns the connection's flow.
func (r *Restored) Flow() Flow { return r.flow }

// Thaw lets the connection live. The path must point here by now: the window probe that an established connection sends is answered to whoever
// the network takes for its owner (KERNEL 8). Then what the application had written and the kernel had not sent follows, all of it, before
// Thaw returns, and the FIN behind it if there is one.
//
// After an error the connection is in an unknown state, and Reset is what is left.
func (r *Restored) Thaw() error {
	if r.snap == nil {
		return &OpError{Op: "thaw", Flow: r.flow, Err: fmt.Errorf("%w: it has been thawed or given up", ErrState)}
	}
	if err := r.thaw(); err != nil {
		return &OpError{Op: "thaw", Flow: r.flow, Err: err}
	}
	r.snap = nil // its queues are the kernel's now. The rest is for Close or Disown: the peer need not wait for it.
	return nil
}

func (r *Restored) thaw() error {
	s := r.snap
	if err := r.sock.repair(unix.TCP_REPAIR_OFF); err != nil {
		return fmt.Errorf("leave repair mode: %w", err)
	}
	if err := r.sock.set(unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return fmt.Errorf("set SO_REUSEADDR: %w", err)
	}
	if err := r.fill(s.Unsent, unix.SO_SNDBUFFORCE); err != nil {
		return fmt.Errorf("write unsent data: %w", err)
	}
	if err := r.closeLate(); err != nil {
		return err
	}
	if err := r.settle(); err != nil {
		return err
	}
	if s.AckDue {
		r.acknowledge()
	}
	return nil
}

// acknowledge has the kernel tell the peer what has been received. The window probe does not: it carries an old sequence number, and
// a peer drops what else it says. A segment from the peer that is older than the window calls for an acknowledgement (RFC 9293,
// 3.10.7.4), so this host sends itself one. Without CAP_NET_RAW, or with lo down, the peer comes back after its retransmission timeout.
func (r *Restored) acknowledge() {
	s := r.snap
	if r.raw < 0 {
		return
	}
	g := segment{
		from: s.Flow.Remote, to: s.Flow.Local, seq: s.Window.Announced - 1, ack: s.SendSeq, flags: tcpACK,
		window: uint16(min(s.Window.Send>>s.Negotiated.SendScale, 1<<16-1)),
	}
	_ = socket(r.raw).sendTo(g.packet(), s.Flow.Local.Addr())
}

// settle sets the options that would have stood in the way before.
func (r *Restored) settle() error {
	o := &r.snap.Options
	if o.NotSentLowWater != 0 {
		if err := r.sock.set(unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, o.NotSentLowWater); err != nil {
			return fmt.Errorf("set TCP_NOTSENT_LOWAT: %w", err)
		}
	}
	if o.PeekOffset != 0 {
		if err := r.sock.set(unix.SOL_SOCKET, unix.SO_PEEK_OFF, o.PeekOffset-1); err != nil {
			return fmt.Errorf("set SO_PEEK_OFF: %w", err)
		}
	}
	if !r.grown {
		return nil
	}
	// Sizes that the server had fixed come back, whatever the queues needed; others stay, and autotuning goes on from there.
	var locks uint32
	if o.SendBufferLocked {
		locks |= sendLocked
		if err := r.force(unix.SO_SNDBUFFORCE, o.SendBuffer); err != nil {
			return err
		}
	}
	if o.ReceiveBufferLocked {
		locks |= receiveLocked
		if err := r.force(unix.SO_RCVBUFFORCE, o.ReceiveBuffer); err != nil {
			return err
		}
	}
	err := r.sock.set(unix.SOL_SOCKET, unix.SO_BUF_LOCK, locks)
	if err != nil && !errors.Is(err, unix.ENOPROTOOPT) { // Linux before 5.14: the buffers stay as they are
		return fmt.Errorf("set SO_BUF_LOCK: %w", err)
	}
	return nil
}

// Discard gives the connection up without a word to the peer: before Thaw, when the move is not to be. It closes the descriptor.
func (r *Restored) Discard() error {
	if r.snap == nil {
		return &OpError{Op: "discard", Flow: r.flow, Err: fmt.Errorf("%w: it is not frozen", ErrState)}
	}
	err := Discard(int(r.sock)) // descriptors in other processes see the end too
	r.release()
	return err
}

// Reset ends the connection with a RST to the peer, before or after Thaw, and closes the descriptor.
func (r *Restored) Reset() error {
	if r.sock < 0 {
		return &OpError{Op: "reset", Flow: r.flow, Err: fmt.Errorf("%w: it has been given up", ErrState)}
	}
	err := Reset(int(r.sock))
	r.release()
	return err
}

// Disown returns the descriptor, which is the caller's from now on.
func (r *Restored) Disown() int {
	fd := int(r.sock)
	r.sock = -1
	r.release()
	return fd
}

// Close closes the descriptor. A connection that is still frozen, and that no other process holds, vanishes without a word.
func (r *Restored) Close() error {
	r.release()
	return nil
}

func (r *Restored) release() {
	r.raw.close()
	r.raw = -1
	if r.sock >= 0 {
		r.sock.close()
	}
	r.sock, r.snap = -1, nil
}
