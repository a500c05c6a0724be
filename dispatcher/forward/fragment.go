// SPDX-License-Identifier: Apache-2.0

package forward

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"time"
)

// Bounds of what is kept of datagrams that have not come whole.
const (
	maxSplit      = 128 // datagrams
	maxPieces     = 128 // fragments of one: the largest datagram has that many of 512 bytes
	maxSplitBytes = 4 << 20
	// splitTime is how long the first of them is waited on. Linux waits for 30 s; SIP repeats a request after half a second.
	splitTime = 5 * time.Second
)

// fragmentKey says which fragments are of one datagram (RFC 791, section 3.2; RFC 8200, section 4.5).
type fragmentKey struct {
	source, destination netip.Addr
	id                  uint32
}

// fragment is a part of a datagram.
type fragment struct {
	key    fragmentKey
	offset int  // of body in the datagram
	more   bool // others follow
	body   []byte
}

// parseFragment reads a frame that has a part of a UDP datagram, not a whole one.
func parseFragment(b []byte) (fragment, bool) {
	if len(b) < ethernetHeader {
		return fragment{}, false
	}
	ip := b[ethernetHeader:]
	switch binary.BigEndian.Uint16(b[12:]) {
	case etherTypeIPv4:
		return fragment4(ip)
	case etherTypeIPv6:
		return fragment6(ip)
	}
	return fragment{}, false
}

func fragment4(ip []byte) (f fragment, ok bool) {
	if len(ip) < ipv4Header || ip[0]>>4 != 4 || ip[9] != protoUDP {
		return f, false
	}
	header, length, word := int(ip[0]&15)*4, int(binary.BigEndian.Uint16(ip[2:])), binary.BigEndian.Uint16(ip[6:])
	if header < ipv4Header || length < header || length > len(ip) || word&0x3fff == 0 {
		return f, false
	}
	return fragment{
		key: fragmentKey{
			netip.AddrFrom4([4]byte(ip[12:16])), netip.AddrFrom4([4]byte(ip[16:20])), uint32(binary.BigEndian.Uint16(ip[4:])),
		},
		offset: int(word&0x1fff) * 8, more: word&0x2000 != 0, body: ip[header:length],
	}, true
}

// fragment6 passes by the headers that may stand before a fragment's; datagrams with more headers behind it are not put together.
func fragment6(ip []byte) (f fragment, ok bool) {
	if len(ip) < ipv6Header || ip[0]>>4 != 6 {
		return f, false
	}
	length := int(binary.BigEndian.Uint16(ip[4:]))
	if length > len(ip)-ipv6Header {
		return f, false
	}
	protocol, rest := ip[6], ip[ipv6Header:ipv6Header+length]
	for range maxExtensions {
		if len(rest) < 8 {
			return f, false
		}
		size := (int(rest[1]) + 1) * 8
		switch protocol {
		case protoHopByHop, protoDestination, protoRouting:
			if size > len(rest) {
				return f, false
			}
			protocol, rest = rest[0], rest[size:]
			continue
		case protoFragment:
		default:
			return f, false
		}
		word := binary.BigEndian.Uint16(rest[2:])
		if rest[0] != protoUDP || word&0xfff9 == 0 { // an atomic one is whole
			return f, false
		}
		return fragment{
			key: fragmentKey{
				netip.AddrFrom16([16]byte(ip[8:24])), netip.AddrFrom16([16]byte(ip[24:40])), binary.BigEndian.Uint32(rest[4:]),
			},
			offset: int(word &^ 7), more: word&1 != 0, body: rest[8:],
		}, true
	}
	return f, false
}

// split is a datagram of which not all has come.
type split struct {
	began  time.Time
	frames [][]byte // as they came
	parts  []fragment
	bytes  int
	end    int // of the datagram; 0: the last part has not come
}

// assembly puts datagrams together whose fragments came one by one. The zero assembly is ready. It keeps copies of frames, within bounds:
// what is oldest goes first.
type assembly struct {
	waiting map[fragmentKey]*split
	order   []fragmentKey // by age
	bytes   int
	lost    uint64 // datagrams that were given up
}

// add takes a fragment with its frame, and returns the datagram, UDP header and payload, and its frames if it is whole now: the first fragment's
// in front, the others as they came. Fragments that overlap make a datagram worthless (RFC 5722); one that is repeated is left out.
func (a *assembly) add(now time.Time, f fragment, frame []byte) (datagram []byte, frames [][]byte, whole bool) {
	a.expire(now)
	s := a.waiting[f.key]
	if s == nil {
		if a.waiting == nil {
			a.waiting = make(map[fragmentKey]*split)
		}
		s = &split{began: now}
		a.waiting[f.key], a.order = s, append(a.order, f.key)
	}
	if slices.ContainsFunc(s.parts, func(p fragment) bool { return p.same(f) }) {
		return nil, nil, false
	}
	if !s.fits(f) {
		a.giveUp(f.key)
		return nil, nil, false
	}
	at := cap(frame) - cap(f.body)
	frame = slices.Clone(frame)
	f.body = frame[at:][:len(f.body)]
	s.frames, s.parts, s.bytes = append(s.frames, frame), append(s.parts, f), s.bytes+len(f.body)
	a.bytes += len(frame)
	if !f.more {
		s.end = f.offset + len(f.body)
	}
	if s.end == 0 || s.bytes < s.end {
		a.bound()
		return nil, nil, false
	}
	a.remove(f.key)
	first := slices.IndexFunc(s.parts, func(p fragment) bool { return p.offset == 0 })
	s.frames[0], s.frames[first] = s.frames[first], s.frames[0]
	datagram = make([]byte, s.end)
	for _, p := range s.parts {
		copy(datagram[p.offset:], p.body)
	}
	return datagram, s.frames, true
}

func (f fragment) same(o fragment) bool {
	return f.offset == o.offset && len(f.body) == len(o.body) && f.more == o.more
}

// fits reports whether a part can be of the datagram.
func (s *split) fits(f fragment) bool {
	end := f.offset + len(f.body)
	switch {
	case len(f.body) == 0, end > 1<<16-1, f.more && len(f.body)%8 != 0, len(s.parts) == maxPieces:
		return false
	case s.end != 0 && (end > s.end || !f.more):
		return false
	}
	return !slices.ContainsFunc(s.parts, func(p fragment) bool {
		return f.offset < p.offset+len(p.body) && p.offset < end || !f.more && p.offset+len(p.body) > end
	})
}

func (a *assembly) expire(now time.Time) {
	for len(a.order) > 0 && now.Sub(a.waiting[a.order[0]].began) >= splitTime {
		a.giveUp(a.order[0])
	}
}

func (a *assembly) bound() {
	for len(a.order) > maxSplit || a.bytes > maxSplitBytes {
		a.giveUp(a.order[0])
	}
}

func (a *assembly) giveUp(key fragmentKey) {
	a.lost++
	a.remove(key)
}

func (a *assembly) remove(key fragmentKey) {
	for _, frame := range a.waiting[key].frames {
		a.bytes -= len(frame)
	}
	delete(a.waiting, key)
	a.order = slices.DeleteFunc(a.order, func(k fragmentKey) bool { return k == key })
}
