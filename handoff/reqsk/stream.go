// SPDX-License-Identifier: Apache-2.0

package reqsk

import (
	"fmt"
	"time"

	"github.com/rehome-net/rehome/tcprepair"
)

// The smallest MSS of a client that the kernel takes, per address family (bpf_sk_assign_tcp_reqsk).
const (
	smallestMSS4 = 536
	smallestMSS6 = 1220
)

// largestScale is the largest window scale (RFC 7323, 2.3).
const largestScale = 14

// stream is a snapshot as a client would send it: what is unread, and the FIN behind it if there is one.
type stream struct {
	flow tcprepair.Flow
	data []byte
	fin  bool
	// seq is the sequence number of data's first byte, ack what the client has acknowledged.
	seq, ack uint32
	options  tcprepair.Negotiated
	// timestamp is our clock, as the client saw it last; echo is what the client echoes, 0 if there is no RTT to tell by it.
	timestamp, echo uint32
	// window is the client's, unscaled.
	window uint16
}

// newStream says whether a snapshot can be injected at all.
func newStream(s *tcprepair.Snapshot) (*stream, error) {
	f, n := s.Flow, s.Negotiated
	smallest := uint16(smallestMSS4)
	if f.Local.Addr().Is6() {
		smallest = smallestMSS6
	}
	switch {
	case !f.IsValid():
		return nil, fmt.Errorf("%w: snapshot has no flow", ErrAddress)
	case f.Remote.Addr().IsLinkLocalUnicast() && f.Remote.Addr().Is6():
		return nil, fmt.Errorf("%w: the client's, %v, has a meaning on one interface only", ErrAddress, f.Remote.Addr())
	case s.State != tcprepair.Established && s.State != tcprepair.CloseWait:
		return nil, fmt.Errorf("%w: it is in %v", ErrState, s.State)
	case len(s.Unacked)+len(s.Unsent) > 0:
		return nil, fmt.Errorf("%w: %d bytes unacknowledged, %d unsent", ErrUnsent, len(s.Unacked), len(s.Unsent))
	case n.MSS < smallest:
		return nil, fmt.Errorf("%w: the client's maximum segment size is %d, the kernel wants %d at least", ErrOption, n.MSS, smallest)
	case n.SendScale > largestScale || n.ReceiveScale > largestScale:
		return nil, fmt.Errorf("%w: window scale above %d", ErrOption, largestScale)
	}
	if !n.WindowScaling {
		n.SendScale, n.ReceiveScale = 0, 0
	}
	t := &stream{
		flow: f, data: s.Received, fin: s.State.PeerClosed(), seq: s.ReceiveSeq, ack: s.SendSeq, options: n,
		window: uint16(min(s.Window.Send>>n.SendScale, 1<<16-1)),
	}
	if n.Timestamps {
		t.timestamp = s.Timestamp
		t.echo = echoed(s.Timestamp, s.Advice.RTT)
	}
	return t, nil
}

// microseconds reports whether a timestamp's clock ticks in microseconds: the kernel keeps that in the lowest bit (6.7).
func microseconds(timestamp uint32) bool { return timestamp&1 != 0 }

// echoed is the timestamp that a client at this distance would echo now. The kernel takes the new connection's first RTT from it;
// without one its retransmission timeout would be 3 s (KERNEL 31).
func echoed(timestamp uint32, rtt time.Duration) uint32 {
	if rtt <= 0 || rtt > time.Minute {
		return 0
	}
	ticks := uint32(rtt.Milliseconds())
	if microseconds(timestamp) {
		ticks = uint32(rtt.Microseconds())
	}
	// 0 would mean that there is none.
	return max(timestamp-ticks, 1)
}

// end is where a segment ends that brings the data up to an offset: the FIN counts, and goes with the last byte.
func (t *stream) end(offset int) int {
	if t.fin && offset == len(t.data) {
		return offset + 1
	}
	return offset
}

// room is how many bytes from an offset on fit a window, -1 if there is no point in sending.
func (t *stream) room(window uint32, from int) int {
	left := len(t.data) - from
	switch {
	case left <= 0:
		return 0 // the FIN, which needs none
	case int32(window) <= 0:
		return -1
	}
	return min(left, int(window), t.maxPayload())
}

// segment is bytes from to from+n of the stream, with the FIN if they are the last.
func (t *stream) segment(from, n int) segment {
	g := segment{seq: t.seq + uint32(from), ack: t.ack, flags: flagACK, payload: t.data[from : from+n]}
	if from+n == len(t.data) {
		if n > 0 {
			g.flags |= flagPSH
		}
		if t.fin {
			g.flags |= flagFIN
		}
	}
	return g
}

// probe is answered with an acknowledgement that opens the window as far as it goes: it lies before the stream. The kernel answers
// one of these in half a second.
func (t *stream) probe() segment { return segment{seq: t.seq - 1, ack: t.ack, flags: flagACK} }
