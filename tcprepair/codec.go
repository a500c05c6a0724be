// SPDX-License-Identifier: Apache-2.0

package tcprepair

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"net/netip"
	"time"
)

// The encoded form, all numbers big-endian:
//
//	magic "RHTC" | version u16 | length u32, of all that follows | sections ... | CRC-32C u32, of all that precedes
//	section: kind u16 | length u32 | payload
//
// Sections come in rising order of kind, each at most once, empty queues not at all: a snapshot has one encoding only. Kinds are
// append-only. A reader skips a kind that it does not know from optionalFrom on, and refuses one below.
const (
	magic       = "RHTC"
	version     = 1
	headerBytes = len(magic) + 2 + 4
	sumBytes    = 4
	// sectionBytes is the size of a section's head.
	sectionBytes = 2 + 4
	// fixedBytes bounds everything in a snapshot but the queues.
	fixedBytes = 64 << 10

	optionalFrom = 0x8000
)

const (
	kindConnection = 1
	kindWindow     = 2
	kindOptions    = 3
	kindUnacked    = 4
	kindUnsent     = 5
	kindReceived   = 6
	kindAdvice     = optionalFrom + 1
	kindPacing     = optionalFrom + 2
	kindCongestion = optionalFrom + 3
	kindDevice     = 7
)

// Bits of the connection section.
const (
	flagMapped = 1 << iota
	flagFinSent
	flagTimestamps
	flagSACK
	flagScaling
	flagECN
	flagsKnown = 1<<iota - 1
)

func castagnoli(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

// AppendBinary appends the encoded snapshot to b and returns the extended slice. It implements encoding.BinaryAppender. The error is ErrCorrupt
// if the snapshot contradicts itself; the size of the queues is not looked at, that is the reader's Limits.
func (s *Snapshot) AppendBinary(b []byte) ([]byte, error) {
	if err := s.validate(Limits{QueueBytes: 1<<31 - 1 - fixedBytes}); err != nil {
		return b, &OpError{Op: "encode", Flow: s.Flow, Err: err}
	}
	start := len(b)
	b = append(b, magic...)
	b = binary.BigEndian.AppendUint16(b, version)
	b = append(b, 0, 0, 0, 0)
	b = appendSection(b, kindConnection, s.appendConnection)
	b = appendSection(b, kindWindow, s.Window.append)
	b = appendSection(b, kindOptions, s.Options.append)
	b = appendBytes(b, kindUnacked, s.Unacked)
	b = appendBytes(b, kindUnsent, s.Unsent)
	b = appendBytes(b, kindReceived, s.Received)
	b = appendBytes(b, kindDevice, []byte(s.Options.Device))
	b = appendSection(b, kindAdvice, s.Advice.append)
	if s.Options.MaxPacingRate != 0 {
		b = appendSection(b, kindPacing, func(b []byte) []byte {
			return binary.BigEndian.AppendUint64(b, s.Options.MaxPacingRate)
		})
	}
	b = appendBytes(b, kindCongestion, []byte(s.Options.Congestion))
	binary.BigEndian.PutUint32(b[start+headerBytes-4:], uint32(len(b)-start-headerBytes+sumBytes))
	return binary.BigEndian.AppendUint32(b, castagnoli(b[start:])), nil
}

// MarshalBinary implements encoding.BinaryMarshaler.
func (s *Snapshot) MarshalBinary() ([]byte, error) {
	return s.AppendBinary(make([]byte, 0, 512+len(s.Unacked)+len(s.Unsent)+len(s.Received)))
}

func appendSection(b []byte, kind uint16, payload func([]byte) []byte) []byte {
	b = binary.BigEndian.AppendUint16(b, kind)
	at := len(b)
	b = payload(append(b, 0, 0, 0, 0))
	binary.BigEndian.PutUint32(b[at:], uint32(len(b)-at-4))
	return b
}

func appendBytes(b []byte, kind uint16, payload []byte) []byte {
	if len(payload) == 0 {
		return b
	}
	b = binary.BigEndian.AppendUint16(b, kind)
	b = binary.BigEndian.AppendUint32(b, uint32(len(payload)))
	return append(b, payload...)
}

func (s *Snapshot) appendConnection(b []byte) []byte {
	var flags uint16
	for i, on := range [...]bool{s.Mapped, s.FinSent, s.Negotiated.Timestamps, s.Negotiated.SACK, s.Negotiated.WindowScaling, s.Negotiated.ECN} {
		if on {
			flags |= 1 << i
		}
	}
	b = append(b, byte(s.State))
	b = binary.BigEndian.AppendUint16(b, flags)
	b = append(b, s.Negotiated.SendScale, s.Negotiated.ReceiveScale)
	b = binary.BigEndian.AppendUint16(b, s.Negotiated.MSS)
	for _, v := range [...]uint32{s.Timestamp, s.SendSeq, s.ReceiveSeq} {
		b = binary.BigEndian.AppendUint32(b, v)
	}
	for _, end := range [...]netip.AddrPort{s.Local, s.Remote} {
		b = binary.BigEndian.AppendUint16(b, end.Port())
		b = append(b, end.Addr().AsSlice()...)
	}
	return b
}

func (w Window) append(b []byte) []byte {
	for _, v := range [...]uint32{w.LastUpdate, w.Send, w.MaxSend, w.Receive, w.Announced} {
		b = binary.BigEndian.AppendUint32(b, v)
	}
	return b
}

func (a Advice) append(b []byte) []byte {
	for _, v := range [...]uint32{
		a.CongestionWindow, a.SlowStartThreshold,
		uint32(a.RTT / time.Microsecond), uint32(a.RTTVar / time.Microsecond), uint32(a.MinRTT / time.Microsecond),
	} {
		b = binary.BigEndian.AppendUint32(b, v)
	}
	return binary.BigEndian.AppendUint64(b, a.PacingRate)
}

// append writes the options that are not zero, as id u16 and value u32 each.
func (o *Options) append(b []byte) []byte {
	fields := o.fields()
	for i := range fields {
		f := &fields[i]
		var v uint32
		switch {
		case f.number != nil:
			v = *f.number
		case *f.flag:
			v = 1
		}
		if v != 0 {
			b = binary.BigEndian.AppendUint16(b, f.id)
			b = binary.BigEndian.AppendUint32(b, v)
		}
	}
	return b
}

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
	if len(b) < headerBytes+sumBytes || string(b[:len(magic)]) != magic {
		return nil, fmt.Errorf("%w: no snapshot in %d bytes", ErrCorrupt, len(b))
	}
	if v := binary.BigEndian.Uint16(b[len(magic):]); v != version {
		return nil, fmt.Errorf("%w: version %d, want %d", ErrVersion, v, version)
	}
	if len(b) > 2*lim.queueBytes()+fixedBytes {
		return nil, fmt.Errorf("%w: snapshot of %d bytes, limit %d per queue", ErrTooLarge, len(b), lim.queueBytes())
	}
	if n := binary.BigEndian.Uint32(b[headerBytes-4:]); uint64(n) != uint64(len(b)-headerBytes) {
		return nil, fmt.Errorf("%w: %d bytes announced, %d here", ErrCorrupt, n, len(b)-headerBytes)
	}
	body, sum := b[:len(b)-sumBytes], binary.BigEndian.Uint32(b[len(b)-sumBytes:])
	if castagnoli(body) != sum {
		return nil, fmt.Errorf("%w: checksum", ErrCorrupt)
	}
	s := &Snapshot{}
	if err := s.decodeSections(body[headerBytes:]); err != nil {
		return nil, err
	}
	return s, s.validate(lim)
}

func (s *Snapshot) decodeSections(b []byte) error {
	var last uint16
	var seen [kindOptions + 1]bool
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
		if int(kind) < len(seen) {
			seen[kind] = true
		}
		if err := s.decodeSection(kind, b[:n:n]); err != nil {
			return err
		}
		b = b[n:]
	}
	if !seen[kindConnection] || !seen[kindWindow] || !seen[kindOptions] {
		return fmt.Errorf("%w: sections missing", ErrCorrupt)
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
	addr := (len(b) - fixed - 2*2) / 2
	if addr != 4 && addr != 16 || len(b) != fixed+2*(2+addr) {
		return false
	}
	flags := binary.BigEndian.Uint16(b[1:])
	s.State = State(b[0])
	s.Mapped = flags&flagMapped != 0
	s.FinSent = flags&flagFinSent != 0
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
	for i, end := range [...]*netip.AddrPort{&s.Local, &s.Remote} {
		e := b[fixed+i*(2+addr):]
		ip, _ := netip.AddrFromSlice(e[2 : 2+addr])
		*end = netip.AddrPortFrom(ip, binary.BigEndian.Uint16(e))
	}
	return flags&^flagsKnown == 0
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
