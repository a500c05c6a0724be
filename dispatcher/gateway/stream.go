// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/reassembly"
)

// Bounds of what is kept of segments that came ahead of others, in gopacket's pages of 1,900 bytes.
const (
	streamPages = 64
	totalPages  = 4096
)

// stream is the server's half of one TCP connection. It is the reassembly.Stream of its connection.
type stream struct {
	parser Parser
	ports  gopacket.Flow
	number uint64
	begun  bool
	synced bool // it began with a SYN, whose sequence number is first
	first  uint32
	next   uint32 // the sequence number after the last byte that was parsed
	halves [][]byte
	failed error
}

// read reports whether everything before the sequence number has been parsed.
func (s *stream) read(end uint32) bool { return s.begun && int32(s.next-end) >= 0 }

// beganWith reports whether a SYN is a repetition of the stream's own.
func (s *stream) beganWith(syn *layers.TCP) bool { return s.synced && s.first == syn.Seq }

// Accept is reassembly.Stream's. A stream that began before the gateway did begins where it is.
func (s *stream) Accept(_ *layers.TCP, _ gopacket.CaptureInfo, _ reassembly.TCPFlowDirection, _ reassembly.Sequence, start *bool, _ reassembly.AssemblerContext) bool {
	*start = true
	return true
}

// ReassembledSG is reassembly.Stream's: it receives the bytes in order.
func (s *stream) ReassembledSG(sg reassembly.ScatterGather, _ reassembly.AssemblerContext) {
	direction, _, _, skip := sg.Info()
	if direction != reassembly.TCPDirClientToServer { // that of the first packet: the server's
		return
	}
	if skip > 0 {
		s.next += uint32(skip)
		s.parser.Gap()
	}
	n, _ := sg.Lengths()
	if n == 0 {
		return
	}
	s.next += uint32(n)
	s.halves = append(s.halves, s.parser.Parse(sg.Fetch(n))...)
}

// ReassemblyComplete is reassembly.Stream's.
func (s *stream) ReassemblyComplete(reassembly.AssemblerContext) bool { return true }

// assembly puts the segments of all streams in order.
type assembly struct {
	assembler *reassembly.Assembler
	streams   uint64
	// opening is the stream of the connection that the assembler meets for the first time.
	opening *stream
}

func newAssembly() *assembly {
	a := &assembly{}
	a.assembler = reassembly.NewAssembler(reassembly.NewStreamPool(a))
	a.assembler.MaxBufferedPagesPerConnection = streamPages
	a.assembler.MaxBufferedPagesTotal = totalPages
	return a
}

// New is reassembly.StreamFactory's.
func (a *assembly) New(gopacket.Flow, gopacket.Flow, *layers.TCP, reassembly.AssemblerContext) reassembly.Stream {
	return a.opening
}

// open returns a new stream that begins with the segment. A client may use its port again: streams go by number, not by address.
func (a *assembly) open(p packet, parser Parser) *stream {
	a.streams++
	return &stream{parser: parser, ports: p.tcp.TransportFlow(), number: a.streams}
}

// add gives a segment to its stream and returns the halves that it has completed.
func (a *assembly) add(s *stream, p packet, now time.Time) [][]byte {
	if !s.begun {
		s.begun, s.synced, s.first, s.next = true, p.tcp.SYN, p.tcp.Seq, p.tcp.Seq
		if p.tcp.SYN {
			s.next++
		}
	}
	a.assemble(s, a.key(s), p.tcp, now)
	return s.take()
}

// end forgets a stream. The assembler lets go of a connection that was reset in both directions.
func (a *assembly) end(s *stream, now time.Time) {
	if !s.begun || s.failed != nil {
		return
	}
	key := a.key(s)
	for _, r := range []struct {
		key   gopacket.Flow
		ports gopacket.Flow
		seq   uint32
	}{{key, s.ports, s.next}, {key.Reverse(), s.ports.Reverse(), 0}} {
		if t, err := reset(r.ports, r.seq); err == nil {
			a.assemble(s, r.key, t, now)
		}
	}
	s.begun, s.halves = false, nil
}

// reset makes a segment with RST. Only one that was decoded has ports that the assembler sees.
func reset(ports gopacket.Flow, seq uint32) (*layers.TCP, error) {
	header := append(append(make([]byte, 0, 20), ports.Src().Raw()...), ports.Dst().Raw()...)
	header = binary.BigEndian.AppendUint32(header, seq)
	header = append(header, 0, 0, 0, 0, 5<<4, 4, 0, 0, 0, 0, 0, 0)
	t := &layers.TCP{}
	return t, t.DecodeFromBytes(header, gopacket.NilDecodeFeedback)
}

func (a *assembly) key(s *stream) gopacket.Flow {
	return gopacket.NewFlow(gopacket.EndpointInvalid, binary.BigEndian.AppendUint64(nil, s.number), nil)
}

// assemble calls gopacket, which is fed by whoever sends packets here: should it fail on them, that one stream is read no more.
func (a *assembly) assemble(s *stream, key gopacket.Flow, t *layers.TCP, now time.Time) {
	if s.failed != nil {
		return
	}
	defer func() {
		if r := recover(); r != nil {
			s.failed = fmt.Errorf("reassembly: %v", r)
		}
	}()
	a.opening = s
	a.assembler.AssembleWithContext(key, t, captured(now))
}

func (s *stream) take() [][]byte {
	halves := s.halves
	s.halves = nil
	return halves
}

// captured is the time of a packet, for gopacket.
type captured time.Time

// GetCaptureInfo is reassembly.AssemblerContext's.
func (c captured) GetCaptureInfo() gopacket.CaptureInfo {
	return gopacket.CaptureInfo{Timestamp: time.Time(c)}
}
