// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"time"

	"github.com/rehome-net/rehome/dispatcher/session"
)

// Version of the encoding. A decoder refuses every other: gateways and dispatchers of different versions do not guess.
const Version = 1

// MaxEncoded is the size in bytes of the largest encoded half.
const MaxEncoded = fixedSize + 1 + 2*(1+16+2) + 3*(1+MaxName) + 1 + MaxStreams*(3+4*(1+16+2))

// fixedSize: version, protocol, side, method, status, seq, ack, target, timeout.
const fixedSize = 4 + 2 + 4 + 4 + 8 + 4

// Errors of Decode.
var (
	ErrVersion   = errors.New("encoded half of another version; run the same version of rehome on gateway and dispatcher")
	ErrTruncated = errors.New("encoded half is too short")
	ErrTrailing  = errors.New("bytes follow the encoded half")
	ErrMalformed = errors.New("malformed encoded half")
)

// Append appends the encoding of h to b: big-endian, one encoding for each half. It fails for a half that breaks a
// limit or has a value that no parser makes.
func (h *Half) Append(b []byte) ([]byte, error) {
	if err := h.validate(); err != nil {
		return b, err
	}
	b = append(b, Version, byte(h.Protocol), byte(h.Side), byte(h.Method))
	b = binary.BigEndian.AppendUint16(b, h.Status)
	b = binary.BigEndian.AppendUint32(b, h.Seq)
	b = binary.BigEndian.AppendUint32(b, h.Ack)
	b = binary.BigEndian.AppendUint64(b, h.Target)
	b = binary.BigEndian.AppendUint32(b, uint32(h.Timeout/time.Second))
	b = append(b, h.Flow.Protocol)
	b = appendAddrPort(b, h.Flow.Client)
	b = appendAddrPort(b, h.Flow.Server)
	for _, s := range []string{h.Session, h.From, h.To} {
		b = append(b, byte(len(s)))
		b = append(b, s...)
	}
	b = append(b, byte(len(h.Streams)))
	for i := range h.Streams {
		s := &h.Streams[i]
		b = append(b, byte(s.Transport), s.flags(), s.Pairs)
		for _, a := range []netip.AddrPort{s.RTP, s.RTCP, s.PeerRTP, s.PeerRTCP} {
			b = appendAddrPort(b, a)
		}
	}
	return b, nil
}

// validate holds what the encoding can say.
func (h *Half) validate() error {
	switch {
	case h.Protocol == 0 || h.Protocol >= protocols:
		return fmt.Errorf("%w: protocol %d", ErrMalformed, h.Protocol)
	case h.Side == 0 || h.Side >= sides:
		return fmt.Errorf("%w: side %d", ErrMalformed, h.Side)
	case h.Method >= methods:
		return fmt.Errorf("%w: method %d", ErrMalformed, h.Method)
	case len(h.Session) > MaxName || len(h.From) > MaxName || len(h.To) > MaxName:
		return fmt.Errorf("%w: a name of more than %d bytes", ErrMalformed, MaxName)
	case len(h.Streams) > MaxStreams:
		return fmt.Errorf("%w: %d streams, at most %d", ErrMalformed, len(h.Streams), MaxStreams)
	case h.Timeout < 0 || h.Timeout%time.Second != 0 || h.Timeout/time.Second > math.MaxUint32:
		return fmt.Errorf("%w: timeout %v", ErrMalformed, h.Timeout)
	case !plain(h.Flow.Client) || !plain(h.Flow.Server):
		return fmt.Errorf("%w: flow %v to %v", ErrMalformed, h.Flow.Client, h.Flow.Server)
	}
	for i := range h.Streams {
		s := &h.Streams[i]
		if s.Transport >= transports {
			return fmt.Errorf("%w: transport %d", ErrMalformed, s.Transport)
		}
		if !plain(s.RTP) || !plain(s.RTCP) || !plain(s.PeerRTP) || !plain(s.PeerRTCP) {
			return fmt.Errorf("%w: an address of stream %d", ErrMalformed, i)
		}
	}
	return nil
}

// plain tells addresses that have one encoding: no zone, and IPv4 not written as IPv6.
func plain(a netip.AddrPort) bool { return a.Addr().Zone() == "" && !a.Addr().Is4In6() }

const (
	flagMux  = 1
	flagOpen = 2
)

func (s *Stream) flags() (f byte) {
	if s.Mux {
		f |= flagMux
	}
	if s.Open {
		f |= flagOpen
	}
	return f
}

func appendAddrPort(b []byte, a netip.AddrPort) []byte {
	ip := a.Addr().AsSlice()
	b = append(b, byte(len(ip)))
	b = append(b, ip...)
	return binary.BigEndian.AppendUint16(b, a.Port())
}

// Decode returns the half that b is the encoding of, the whole of it. Nothing of b is kept. A half that decodes is
// well-formed and no more: who sent it, and whether that one may speak for its flow, is for the caller to check.
func Decode(b []byte) (Half, error) {
	r := reader{b: b}
	if v := r.uint8(); !r.short && v != Version {
		return Half{}, fmt.Errorf("version %d: %w", v, ErrVersion)
	}
	h := Half{Protocol: Protocol(r.uint8()), Side: Side(r.uint8()), Method: Method(r.uint8()), Status: r.uint16()}
	h.Seq, h.Ack = r.uint32(), r.uint32()
	h.Target = uint64(r.uint32())<<32 | uint64(r.uint32())
	h.Timeout = time.Duration(r.uint32()) * time.Second
	h.Flow = session.Key{Protocol: r.uint8(), Client: r.addrPort(), Server: r.addrPort()}
	h.Session, h.From, h.To = r.name(), r.name(), r.name()
	n := int(r.uint8())
	if n > MaxStreams {
		return Half{}, fmt.Errorf("%w: %d streams, at most %d", ErrMalformed, n, MaxStreams)
	}
	for range n {
		s := Stream{Transport: Transport(r.uint8())}
		flags := r.uint8()
		if flags > flagMux|flagOpen {
			return Half{}, fmt.Errorf("%w: flags %#x", ErrMalformed, flags)
		}
		s.Mux, s.Open = flags&flagMux != 0, flags&flagOpen != 0
		s.Pairs = r.uint8()
		s.RTP, s.RTCP, s.PeerRTP, s.PeerRTCP = r.addrPort(), r.addrPort(), r.addrPort(), r.addrPort()
		h.Streams = append(h.Streams, s)
	}
	switch {
	case r.bad:
		return Half{}, fmt.Errorf("%w: an address of an unknown family", ErrMalformed)
	case r.short:
		return Half{}, ErrTruncated
	case len(r.b) > 0:
		return Half{}, fmt.Errorf("%d %w", len(r.b), ErrTrailing)
	}
	if err := h.validate(); err != nil {
		return Half{}, err
	}
	return h, nil
}

// reader takes fields off b; short says that there was too little, bad that a field was not well-formed.
type reader struct {
	b          []byte
	short, bad bool
}

func (r *reader) take(n int) []byte {
	if len(r.b) < n {
		r.short = true
		r.b = nil
		return make([]byte, n)
	}
	taken := r.b[:n]
	r.b = r.b[n:]
	return taken
}

func (r *reader) uint8() uint8   { return r.take(1)[0] }
func (r *reader) uint16() uint16 { return binary.BigEndian.Uint16(r.take(2)) }
func (r *reader) uint32() uint32 { return binary.BigEndian.Uint32(r.take(4)) }
func (r *reader) name() string   { return string(r.take(int(r.uint8()))) }

func (r *reader) addrPort() netip.AddrPort {
	var ip netip.Addr
	switch n := r.uint8(); n {
	case 0:
	case 4:
		ip = netip.AddrFrom4([4]byte(r.take(4)))
	case 16:
		ip = netip.AddrFrom16([16]byte(r.take(16)))
	default:
		r.bad = true
	}
	return netip.AddrPortFrom(ip, r.uint16())
}
