// SPDX-License-Identifier: Apache-2.0

package tcprepair

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"
)

// Decode reads one encoded snapshot, which must be all of b. It refuses what is truncated, followed by anything, damaged,
// contradictory (ErrCorrupt), larger than lim (ErrTooLarge) or from another version (ErrVersion), before it allocates anything of that size.
// The queues of the snapshot are slices of b.
func Decode(b []byte, lim Limits) (*Snapshot, error) {
	s, err := decode(b, lim)
	if err != nil {
		return nil, &OpError{Op: "decode", Err: err}
	}
	return s, nil
}

func decode(b []byte, lim Limits) (*Snapshot, error) {
	body, err := openFrame(b, magicSnapshot, 2*lim.queueBytes()+fixedBytes)
	if err != nil {
		return nil, err
	}
	s := &Snapshot{}
	if err := eachSection(body, s.decodeSection, kindConnection, kindWindow, kindOptions); err != nil {
		return nil, err
	}
	return s, s.validate(lim)
}

// openFrame checks a frame of at most so many bytes and returns its sections.
func openFrame(b []byte, magic string, most int) ([]byte, error) {
	if len(b) < headerBytes+sumBytes || string(b[:len(magic)]) != magic {
		return nil, fmt.Errorf("%w: no %s in %d bytes", ErrCorrupt, magic, len(b))
	}
	if v := binary.BigEndian.Uint16(b[len(magic):]); v != version {
		return nil, fmt.Errorf("%w: version %d, want %d", ErrVersion, v, version)
	}
	if len(b) > most {
		return nil, fmt.Errorf("%w: %d bytes, limit %d", ErrTooLarge, len(b), most)
	}
	if n := binary.BigEndian.Uint32(b[headerBytes-4:]); uint64(n) != uint64(len(b)-headerBytes) {
		return nil, fmt.Errorf("%w: %d bytes announced, %d here", ErrCorrupt, n, len(b)-headerBytes)
	}
	body, sum := b[:len(b)-sumBytes], binary.BigEndian.Uint32(b[len(b)-sumBytes:])
	if castagnoli(body) != sum {
		return nil, fmt.Errorf("%w: checksum", ErrCorrupt)
	}
	return body[headerBytes:], nil
}

// eachSection gives every section to decode and wants those required among them.
func eachSection(b []byte, decode func(kind uint16, b []byte) error, required ...uint16) error {
	var last uint16
	for len(b) > 0 {
		if len(b) < sectionBytes {
			return fmt.Errorf("%w: section head cut short", ErrCorrupt)
		}
		kind, n := binary.BigEndian.Uint16(b), binary.BigEndian.Uint32(b[2:])
		b = b[sectionBytes:]
		if kind <= last || uint64(n) > uint64(len(b)) {
			return fmt.Errorf("%w: section %d of %d bytes", ErrCorrupt, kind, n)
		}
		last = kind
		if len(required) > 0 && kind == required[0] { // both in rising order
			required = required[1:]
		}
		if err := decode(kind, b[:n:n]); err != nil {
			return err
		}
		b = b[n:]
	}
	if len(required) > 0 {
		return fmt.Errorf("%w: section %d is missing", ErrCorrupt, required[0])
	}
	return nil
}

func (s *Snapshot) decodeSection(kind uint16, b []byte) error {
	ok := true
	switch kind {
	case kindConnection:
		ok = s.decodeConnection(b)
	case kindWindow:
		ok = s.Window.decode(b)
	case kindOptions:
		return s.Options.decode(b)
	case kindUnacked:
		ok, s.Unacked = len(b) > 0, b
	case kindUnsent:
		ok, s.Unsent = len(b) > 0, b
	case kindReceived:
		ok, s.Received = len(b) > 0, b
	case kindDevice:
		ok, s.Options.Device = len(b) > 0 && len(b) <= maxName, string(b)
	case kindAdvice:
		ok = s.Advice.decode(b)
	case kindPacing:
		if ok = len(b) == 8; ok {
			s.Options.MaxPacingRate = binary.BigEndian.Uint64(b)
			ok = s.Options.MaxPacingRate != 0
		}
	case kindCongestion:
		ok, s.Options.Congestion = len(b) > 0 && len(b) <= maxName, string(b)
	default:
		if kind < optionalFrom {
			return fmt.Errorf("%w: section %d is unknown and may not be skipped", ErrVersion, kind)
		}
	}
	if !ok {
		return fmt.Errorf("%w: section %d of %d bytes", ErrCorrupt, kind, len(b))
	}
	return nil
}

func (s *Snapshot) decodeConnection(b []byte) bool {
	const fixed = 1 + 2 + 2 + 2 + 3*4
	if len(b) < fixed || !s.Flow.decode(b[fixed:]) {
		return false
	}
	flags := binary.BigEndian.Uint16(b[1:])
	s.State = State(b[0])
	s.Mapped = flags&flagMapped != 0
	s.FinSent = flags&flagFinSent != 0
	s.AckDue = flags&flagAckDue != 0
	s.Negotiated = Negotiated{
		MSS:           binary.BigEndian.Uint16(b[5:]),
		Timestamps:    flags&flagTimestamps != 0,
		SACK:          flags&flagSACK != 0,
		WindowScaling: flags&flagScaling != 0,
		SendScale:     b[3],
		ReceiveScale:  b[4],
		ECN:           flags&flagECN != 0,
	}
	s.Timestamp = binary.BigEndian.Uint32(b[7:])
	s.SendSeq = binary.BigEndian.Uint32(b[11:])
	s.ReceiveSeq = binary.BigEndian.Uint32(b[15:])
	return flags&^flagsKnown == 0
}

func (f *Flow) decode(b []byte) bool {
	const ports = 2 * 2
	addr := (len(b) - ports) / 2
	if addr != 4 && addr != 16 || len(b) != ports+2*addr {
		return false
	}
	for i, end := range [...]*netip.AddrPort{&f.Local, &f.Remote} {
		e := b[i*(2+addr):]
		ip, _ := netip.AddrFromSlice(e[2 : 2+addr])
		*end = netip.AddrPortFrom(ip, binary.BigEndian.Uint16(e))
	}
	return true
}

func (w *Window) decode(b []byte) bool {
	if len(b) != 20 {
		return false
	}
	for i, p := range [...]*uint32{&w.LastUpdate, &w.Send, &w.MaxSend, &w.Receive, &w.Announced} {
		*p = binary.BigEndian.Uint32(b[4*i:])
	}
	return true
}

func (a *Advice) decode(b []byte) bool {
	if len(b) != 5*4+8 {
		return false
	}
	a.CongestionWindow = binary.BigEndian.Uint32(b)
	a.SlowStartThreshold = binary.BigEndian.Uint32(b[4:])
	for i, p := range [...]*time.Duration{&a.RTT, &a.RTTVar, &a.MinRTT} {
		*p = time.Duration(binary.BigEndian.Uint32(b[8+4*i:])) * time.Microsecond
	}
	a.PacingRate = binary.BigEndian.Uint64(b[20:])
	return true
}

func (o *Options) decode(b []byte) error {
	fields := o.fields()
	for last := uint16(0); len(b) > 0; b = b[6:] {
		if len(b) < 6 {
			return fmt.Errorf("%w: option cut short", ErrCorrupt)
		}
		id, v := binary.BigEndian.Uint16(b), binary.BigEndian.Uint32(b[2:])
		if id <= last || v == 0 {
			return fmt.Errorf("%w: option %d is %d", ErrCorrupt, id, v)
		}
		last = id
		switch {
		case int(id) <= len(fields) && fields[id-1].number != nil:
			*fields[id-1].number = v
		case int(id) <= len(fields) && v == 1:
			*fields[id-1].flag = true
		case int(id) <= len(fields):
			return fmt.Errorf("%w: option %d is %d", ErrCorrupt, id, v)
		case id < optionalFrom:
			return fmt.Errorf("%w: option %d is unknown and may not be skipped", ErrVersion, id)
		}
	}
	return nil
}
