// SPDX-License-Identifier: Apache-2.0

package tcprepair

import (
	"fmt"
	"time"
)

// DefaultQueueBytes bounds each queue of a snapshot when Limits say nothing.
const DefaultQueueBytes = 64 << 20

// maxScale is the largest window scale (RFC 7323, 2.3).
const maxScale = 14

// Limits bound what a snapshot may hold. The zero value is ready to use.
type Limits struct {
	// QueueBytes bounds the receive queue, and the send queue (Unacked and Unsent together). 0 means DefaultQueueBytes.
	QueueBytes int
}

func (l Limits) queueBytes() int {
	if l.QueueBytes <= 0 {
		return DefaultQueueBytes
	}
	return l.QueueBytes
}

// Snapshot is one connection at rest: everything that another kernel needs to go on with it. It holds no trace of the application's own state.
//
//	              SendSeq                            ReceiveSeq
//	               |                                  |
//	acknowledged   | Unacked | Unsent | FIN     read  | Received | FIN
//	- - - - - - - - ---------+--------+----     - - - -----------+----
//	                 sent    ^ next to send                      ^ next expected
type Snapshot struct {
	Flow Flow
	// Mapped is true when the socket is an AF_INET6 one that speaks IPv4 (::ffff:a.b.c.d). It is restored as one, so that the application
	// sees the same addresses in getsockname; on the wire there is no difference.
	Mapped bool
	State  State
	// FinSent is true when our FIN has been sent, acknowledged or not. In FinWait1, Closing and LastAck it may be
	// false: then the FIN waits behind Unsent.
	FinSent    bool
	Negotiated Negotiated
	// Timestamp is the value of TCP_TIMESTAMP: opaque, it holds the clock and its unit. Without it the peer's PAWS check (RFC 7323, 5)
	// drops everything. 0 when timestamps were not negotiated.
	Timestamp uint32

	// SendSeq is the sequence number of the first byte of Unacked, or of what follows when that is empty. In FinWait2 it is
	// that of the acknowledged FIN.
	SendSeq uint32
	// Unacked was sent and not acknowledged yet.
	Unacked []byte
	// Unsent was written by the application and never sent.
	Unsent []byte
	// AckDue is true when the peer may have sent data whose acknowledgement it has not got: the kernel was still delaying it, or the gate
	// that kept the frozen socket silent swallowed it.
	AckDue bool
	// ReceiveSeq is the sequence number of the first byte of Received, or of what follows when that is empty.
	ReceiveSeq uint32
	// Received was received, and acknowledged, and not read by the application yet.
	Received []byte

	Window  Window
	Options Options
	Advice  Advice
}

// Negotiated are the options both ends agreed upon in the handshake. Each stands on its own: a peer with timestamps and
// without SACK is real.
type Negotiated struct {
	// MSS is the largest segment that the peer takes, in bytes without options (the kernel's mss_clamp).
	MSS uint16
	// Timestamps, SACK: RFC 7323, RFC 2018.
	Timestamps bool
	SACK       bool
	// WindowScaling is false when either side did without; both scales are 0 then.
	WindowScaling bool
	// SendScale scales the peer's window, ReceiveScale the one that we announce.
	SendScale    uint8
	ReceiveScale uint8
	// ECN is told for the record: the kernel cannot restore it. The connection goes on without: no packet of ours is marked as ECN-capable any
	// more, and congestion marks on the peer's are not echoed.
	ECN bool
}

// Window is the kernel's TCP_REPAIR_WINDOW, in bytes and sequence numbers.
type Window struct {
	// LastUpdate (snd_wl1) is the sequence number of the segment that last changed Send.
	LastUpdate uint32
	// Send (snd_wnd) is what the peer allows us, MaxSend the most it ever did.
	Send    uint32
	MaxSend uint32
	// Receive (rcv_wnd) is what we announced last, counted from Announced (rcv_wup), which is the sequence number acknowledged
	// in the same segment.
	Receive   uint32
	Announced uint32
}

// Advice is what the source knew about the path. A restored socket starts without it (KERNEL 13); whoever can seed it may.
type Advice struct {
	// CongestionWindow and SlowStartThreshold are in segments; the threshold is 0x7fffffff while there is none.
	CongestionWindow   uint32
	SlowStartThreshold uint32
	// RTT, RTTVar and MinRTT are 0 when unknown.
	RTT    time.Duration
	RTTVar time.Duration
	MinRTT time.Duration
	// PacingRate is in bytes per second, 0 when unknown.
	PacingRate uint64
}

// finSeq returns the sequence number of our FIN.
func (s *Snapshot) finSeq() uint32 {
	return s.SendSeq + uint32(len(s.Unacked)) + uint32(len(s.Unsent))
}

// nextReceive returns the sequence number that the kernel expects next, behind the peer's FIN when there is one (rcv_nxt).
func (s *Snapshot) nextReceive() uint32 {
	n := s.ReceiveSeq + uint32(len(s.Received))
	if s.State.PeerClosed() {
		n++
	}
	return n
}

// validate refuses what no kernel can have said, so that Restore never has to find out the hard way.
func (s *Snapshot) validate(lim Limits) error {
	n := s.Negotiated
	switch {
	case !s.Flow.IsValid():
		return fmt.Errorf("%w: addresses %s", ErrCorrupt, s.Flow)
	case s.Mapped && !s.Flow.Local.Addr().Is4():
		return fmt.Errorf("%w: mapped, but not IPv4", ErrCorrupt)
	case !s.State.Movable():
		return fmt.Errorf("%w: state %s", ErrCorrupt, s.State)
	case s.FinSent && !s.State.Closed(), !s.FinSent && s.State == FinWait2:
		return fmt.Errorf("%w: FIN sent is %t in %s", ErrCorrupt, s.FinSent, s.State)
	case s.FinSent && len(s.Unsent) > 0, s.State == FinWait2 && len(s.Unacked) > 0:
		return fmt.Errorf("%w: data in the send queue behind the FIN", ErrCorrupt)
	case n.MSS == 0:
		return fmt.Errorf("%w: no MSS", ErrCorrupt)
	case n.SendScale > maxScale, n.ReceiveScale > maxScale,
		!n.WindowScaling && n.SendScale|n.ReceiveScale != 0:
		return fmt.Errorf("%w: window scales %d and %d", ErrCorrupt, n.SendScale, n.ReceiveScale)
	case !n.Timestamps && s.Timestamp != 0:
		return fmt.Errorf("%w: a timestamp, but none negotiated", ErrCorrupt)
	case len(s.Received) > lim.queueBytes():
		return fmt.Errorf("%w: %d bytes received, limit %d", ErrTooLarge, len(s.Received), lim.queueBytes())
	case len(s.Unacked)+len(s.Unsent) > lim.queueBytes():
		return fmt.Errorf("%w: %d bytes to send, limit %d", ErrTooLarge, len(s.Unacked)+len(s.Unsent), lim.queueBytes())
	}
	// The kernel's own conditions (tcp_repair_set_window); the differences are modulo 2^32.
	w, next := s.Window, s.nextReceive()
	if w.MaxSend < w.Send || int32(next-w.Announced) < 0 || int32(next+w.Receive-w.LastUpdate) < 0 {
		return fmt.Errorf("%w: window %+v, next byte expected %d", ErrCorrupt, w, next)
	}
	return s.Options.validate()
}
