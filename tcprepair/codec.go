// SPDX-License-Identifier: Apache-2.0

package tcprepair

import (
	"encoding/binary"
	"hash/crc32"
	"net/netip"
	"time"
)

// The encoded form, all numbers big-endian:
//
//	magic "RHTC" (snapshot) or "RHTO" (outline) | version u16 | length u32, of all that follows | sections ... | CRC-32C u32, of all that precedes
//	section: kind u16 | length u32 | payload
//
// Sections come in rising order of kind, each at most once, empty queues not at all: a snapshot has one encoding only. Kinds are
// append-only. A reader skips a kind that it does not know from optionalFrom on, and refuses one below.
const (
	magicSnapshot = "RHTC"
	magicOutline  = "RHTO"
	version       = 1
	headerBytes   = 4 + 2 + 4
	sumBytes      = 4
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
	kindFlow       = 8
)

// Bits of the connection section.
const (
	flagMapped = 1 << iota
	flagFinSent
	flagTimestamps
	flagSACK
	flagScaling
	flagECN
	flagAckDue
	flagsKnown = 1<<iota - 1
)

func castagnoli(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

// AppendBinary appends the encoded snapshot to b and returns the extended slice. It implements encoding.BinaryAppender. The error is ErrCorrupt
// if the snapshot contradicts itself; the size of the queues is not looked at, that is the reader's Limits.
func (s *Snapshot) AppendBinary(b []byte) ([]byte, error) {
	if err := s.validate(Limits{QueueBytes: 1<<31 - 1 - fixedBytes}); err != nil {
		return b, &OpError{Op: "encode", Flow: s.Flow, Err: err}
	}
	return appendFrame(b, magicSnapshot, func(b []byte) []byte {
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
		return appendBytes(b, kindCongestion, []byte(s.Options.Congestion))
	}), nil
}

// MarshalBinary implements encoding.BinaryMarshaler.
func (s *Snapshot) MarshalBinary() ([]byte, error) {
	return s.AppendBinary(make([]byte, 0, 512+len(s.Unacked)+len(s.Unsent)+len(s.Received)))
}

// appendFrame appends what sections append, between a header and a checksum.
func appendFrame(b []byte, magic string, sections func([]byte) []byte) []byte {
	start := len(b)
	b = append(b, magic...)
	b = binary.BigEndian.AppendUint16(b, version)
	b = sections(append(b, 0, 0, 0, 0))
	binary.BigEndian.PutUint32(b[start+headerBytes-4:], uint32(len(b)-start-headerBytes+sumBytes))
	return binary.BigEndian.AppendUint32(b, castagnoli(b[start:]))
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
	for i, on := range [...]bool{s.Mapped, s.FinSent, s.Negotiated.Timestamps, s.Negotiated.SACK, s.Negotiated.WindowScaling, s.Negotiated.ECN, s.AckDue} {
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
	return s.Flow.append(b)
}

func (f Flow) append(b []byte) []byte {
	for _, end := range [...]netip.AddrPort{f.Local, f.Remote} {
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
