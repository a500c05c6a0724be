// SPDX-License-Identifier: Apache-2.0

package netnslab

import (
	"net/netip"
	"time"

	"github.com/rehome-net/rehome/tcprepair"
)

// Segment is one captured TCP packet, without its payload. With segmentation offload it may stand for many segments on the wire.
type Segment struct {
	// Time is the kernel's timestamp.
	Time time.Time
	// Src and Dst are the ends, IPv4 or IPv6.
	Src, Dst netip.AddrPort
	// Sent says that the host where it was captured sent it.
	Sent bool
	// Seq, Ack and Window are the header's fields, unscaled; Len is the payload's length in bytes.
	Seq, Ack uint32
	Window   uint16
	Len      int
	// The flags that matter to assertions.
	SYN, FIN, RST, ACK bool
}

// span returns the sequence numbers the segment takes: payload, SYN and FIN.
func (s Segment) span() uint32 {
	n := uint32(s.Len)
	if s.SYN {
		n++
	}
	if s.FIN {
		n++
	}
	return n
}

// Trace is what a Capture saw.
type Trace struct {
	// Segments are the TCP packets, in order of capture.
	Segments []Segment
	// Others counts packets that are not TCP, or that could not be read: fragments, unknown extension headers.
	Others int
	// Missed counts packets that the capture could not keep up with. An assertion that something did *not* happen is worth nothing unless it is 0.
	Missed int
}

// Flow returns the part of the trace that belongs to one connection.
func (t Trace) Flow(f tcprepair.Flow) Trace {
	out := Trace{Missed: t.Missed}
	for _, s := range t.Segments {
		if s.Src == f.Remote && s.Dst == f.Local || s.Src == f.Local && s.Dst == f.Remote {
			out.Segments = append(out.Segments, s)
		}
	}
	return out
}

// From returns the part of the trace that src sent.
func (t Trace) From(src netip.AddrPort) Trace {
	out := Trace{Missed: t.Missed}
	for _, s := range t.Segments {
		if s.Src == src {
			out.Segments = append(out.Segments, s)
		}
	}
	return out
}

// Resets counts packets with RST.
func (t Trace) Resets() int {
	n := 0
	for _, s := range t.Segments {
		if s.RST {
			n++
		}
	}
	return n
}

// Connections counts the connections that a client tried to open: distinct ends and sequence numbers of SYN without ACK.
func (t Trace) Connections() int {
	type opening struct {
		src, dst netip.AddrPort
		seq      uint32
	}
	seen := make(map[opening]bool)
	for _, s := range t.Segments {
		if s.SYN && !s.ACK {
			seen[opening{s.Src, s.Dst, s.Seq}] = true
		}
	}
	return len(seen)
}

// Retransmitted counts, over all directions of all flows in the trace, packets that carry a sequence number (payload, SYN or FIN) seen before in their
// direction, and how many such numbers. A packet that comes late and fills a hole is none. What was lost before the place of capture is
// not seen there: capture at the sender to count its retransmissions. Pure ACKs and window probes carry nothing and never count.
func (t Trace) Retransmitted() (packets int, octets int64) {
	type direction struct{ src, dst netip.AddrPort }
	seen := make(map[direction]*sequence)
	for _, s := range t.Segments {
		if s.RST || s.span() == 0 {
			continue
		}
		d := direction{s.Src, s.Dst}
		q := seen[d]
		if q == nil || s.SYN && !q.covers(s.Seq) { // a reused port starts a new connection
			q = &sequence{}
			seen[d] = q
		}
		if again := q.add(s.Seq, s.span()); again > 0 {
			packets++
			octets += again
		}
	}
	return packets, octets
}

// Gap is the longest silence in a trace.
type Gap struct {
	// Length is the time between two packets, Start that of the first of them.
	Length time.Duration
	Start  time.Time
}

// LongestGap returns the longest time between two packets that follow one another; the zero Gap with fewer than two. Narrow the trace with
// Flow and From first.
func (t Trace) LongestGap() Gap {
	var g Gap
	for i := 1; i < len(t.Segments); i++ {
		if d := t.Segments[i].Time.Sub(t.Segments[i-1].Time); d > g.Length {
			g = Gap{Length: d, Start: t.Segments[i-1].Time}
		}
	}
	return g
}

// Payload returns the part of the trace that carries payload.
func (t Trace) Payload() Trace {
	out := Trace{Missed: t.Missed}
	for _, s := range t.Segments {
		if s.Len > 0 {
			out.Segments = append(out.Segments, s)
		}
	}
	return out
}
