// SPDX-License-Identifier: Apache-2.0

package cookie

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/rehome-net/rehome/tcprepair"
)

// The dispatcher's answer to a SYN carries all that is to be known later:
//
//	sequence number  | hash: 28 bits                          | period: 2 | MSS: 2 |
//	timestamp        | time: 10 | MSS: 16 | ECN: 1 | SACK: 1 | window scale: 4 |
//
// The hash is SipHash-2-4 of addresses, ports, the client's initial sequence number, the period, and everything else in these two
// words. The time, in units of 2 ms, tells the dispatcher how far away the client is. A client without timestamps gets none of the options, and one of four MSS, as with the kernel's own SYN cookies.
// bpf/cookie.h has the same layout.
const (
	choiceSACK       = 1 << 4
	choiceECN        = 1 << 5
	choiceMSSShift   = 6
	choiceBits       = 22
	choiceTimestamps = 1 << 31 // not on the wire: the packet has the option
	noScale          = 15
)

// Period is how long cookies look the same. One is accepted in its own period, in the next two, and in the one before, since clocks differ.
const Period = 1 << 35 * time.Nanosecond

// MSS that a client without timestamps can be recorded with, IPv4 and IPv6.
var (
	mss4 = [4]uint16{536, 1300, 1440, 1460}  //nolint:gochecknoglobals // a table
	mss6 = [4]uint16{1220, 1360, 1440, 8940} //nolint:gochecknoglobals // a table
)

// Offer is what a client asks for in its SYN.
type Offer struct {
	// Sequence is the client's initial sequence number.
	Sequence uint32
	// MSS is the largest segment that it takes; 0 if it does not say.
	MSS uint16
	// Timestamps, SACK and ECN are whether it offers them.
	Timestamps, SACK, ECN bool
	// WindowScaling is whether it offers that, Scale its own.
	WindowScaling bool
	Scale         uint8
}

// Answer is what identifies the connection in the dispatcher's SYN-ACK.
type Answer struct {
	// Sequence is the dispatcher's initial sequence number, Timestamp its TSval; that is 0 without timestamps.
	Sequence, Timestamp uint32
}

// Seal returns the answer to a client's SYN, in the period that now is in. The upper ten bits of stamp are the time.
func Seal(key Secret, flow tcprepair.Flow, o Offer, now time.Time, stamp uint32) Answer {
	v := sealed{isn: o.Sequence, period: periodOf(now), index: mssIndex(flow, o.MSS), timestamps: o.Timestamps}
	if o.Timestamps {
		v.timestamp = stamp>>choiceBits<<choiceBits | uint32(cappedMSS(flow, o.MSS))<<choiceMSSShift | noScale
		if o.WindowScaling {
			v.timestamp = v.timestamp&^noScale | uint32(min(o.Scale, 14))
		}
		if o.SACK {
			v.timestamp |= choiceSACK
		}
		if o.ECN {
			v.timestamp |= choiceECN
		}
	}
	return Answer{Sequence: v.cookie(key, flow), Timestamp: v.timestamp}
}

// Echo is what a client's first packet says.
type Echo struct {
	// Sequence and Acknowledgement are those of the TCP header.
	Sequence, Acknowledgement uint32
	// Timestamps is whether the packet has the option, and Timestamp the TSecr in it.
	Timestamps bool
	Timestamp  uint32
}

// Recall returns what the client had asked for, if the packet is the first one of a client that has seen the answer to its SYN no
// longer than two periods ago. Keys are tried in turn.
func Recall(flow tcprepair.Flow, e Echo, now time.Time, keys ...Secret) (Offer, bool) {
	cookie, current := e.Acknowledgement-1, periodOf(now)
	v := sealed{isn: e.Sequence - 1, index: cookie & 3, timestamps: e.Timestamps}
	v.period = current - (4-(cookie>>2-current)&3)&3
	if (cookie>>2-current)&3 == 1 {
		v.period = current + 1
	}
	choice := v.index<<24 | noScale
	if e.Timestamps {
		v.timestamp = e.Timestamp
		choice = v.index<<24 | choiceTimestamps | e.Timestamp&(1<<choiceBits-1)
	}
	for _, k := range keys {
		if v.cookie(k, flow) == cookie {
			return Choice(choice).offer(flow, v.isn), true
		}
	}
	return Offer{}, false
}

// Choice is what the dispatcher's program says of the options that a cookie carries.
type Choice uint32

// Negotiated returns the options of the connection; scale is the window scale that clients are told.
func (c Choice) Negotiated(flow tcprepair.Flow, scale uint8) tcprepair.Negotiated {
	o := c.offer(flow, 0)
	n := tcprepair.Negotiated{MSS: o.MSS, Timestamps: o.Timestamps, SACK: o.SACK, ECN: o.ECN, WindowScaling: o.WindowScaling}
	if o.WindowScaling {
		n.SendScale, n.ReceiveScale = o.Scale, scale
	}
	return n
}

func (c Choice) offer(flow tcprepair.Flow, isn uint32) Offer {
	o := Offer{Sequence: isn}
	if c&choiceTimestamps == 0 {
		o.MSS = mssTable(flow)[c>>24&3]
		return o
	}
	o.MSS, o.Timestamps, o.SACK, o.ECN = uint16(c>>choiceMSSShift), true, c&choiceSACK != 0, c&choiceECN != 0
	if s := uint8(c & 15); s != noScale {
		o.WindowScaling, o.Scale = true, s
	}
	return o
}

func (o Offer) String() string {
	return fmt.Sprintf("mss %d timestamps %t sack %t ecn %t scale %t %d", o.MSS, o.Timestamps, o.SACK, o.ECN, o.WindowScaling, o.Scale)
}

func mssTable(flow tcprepair.Flow) *[4]uint16 {
	if flow.Local.Addr().Is4() {
		return &mss4
	}
	return &mss6
}

func mssIndex(flow tcprepair.Flow, mss uint16) uint32 {
	table, at := mssTable(flow), 0
	for i, m := range table {
		if mss >= m {
			at = i
		}
	}
	return uint32(at)
}

// cappedMSS is the client's MSS, the protocol's default if it names none (RFC 9293, 3.7.1).
func cappedMSS(flow tcprepair.Flow, mss uint16) uint16 {
	if mss == 0 {
		return mssTable(flow)[0]
	}
	return mss
}

func periodOf(t time.Time) uint32 { return uint32(uint64(t.UnixNano()) >> 35) }

// sealed is what the cookie vouches for, beside the flow.
type sealed struct {
	isn, period, index, timestamp uint32
	timestamps                    bool
}

func (v sealed) cookie(key Secret, flow tcprepair.Flow) uint32 {
	remote, local := flow.Remote.Addr().AsSlice(), flow.Local.Addr().AsSlice()
	words := make([]uint64, 0, 6)
	for i := 0; i < len(remote); i += 4 {
		words = append(words, uint64(binary.LittleEndian.Uint32(remote[i:]))|uint64(binary.LittleEndian.Uint32(local[i:]))<<32)
	}
	ports := uint32(swap(flow.Remote.Port())) | uint32(swap(flow.Local.Port()))<<16
	low := v.period | v.index<<30
	if v.timestamps {
		low |= 1 << 29
	}
	words = append(words, uint64(ports)|uint64(v.isn)<<32, uint64(low)|uint64(v.timestamp)<<32)
	return uint32(sipHash(key, words...))<<4 | v.period&3<<2 | v.index
}

// swap returns a port as a little-endian machine reads it from a packet.
func swap(port uint16) uint16 { return port<<8 | port>>8 }
