// SPDX-License-Identifier: Apache-2.0

package synproxy

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/rehome-net/rehome/handoff/cookie"
	"github.com/rehome-net/rehome/tcprepair"
)

// Places in a record: struct record of bpf/synproxy.c.
const (
	recordCookie     = cookie.FlowSize
	recordISN        = 44
	recordChoice     = 48
	recordState      = 52
	recordLength     = 56
	recordAt         = 60
	recordHeader     = 64
	recordPayload    = 68
	recordSeq        = 72
	recordAck        = 76
	recordTSVal      = 80
	recordTSEcr      = 84
	recordGSOSize    = 88
	recordDistance   = 92
	recordAge        = 96
	recordFlags      = 100
	recordTimestamps = 101
	recordSize       = 104
)

// TCP flags.
const (
	flagFIN = 1
	flagRST = 4
	flagPSH = 8
	flagACK = 16
)

// Offsets in a TCP header.
const (
	tcpWindow   = 14
	tcpChecksum = 16
	tcpUrgent   = 18
)

// packet is one packet of a client, as the program has seen it.
type packet struct {
	flow        tcprepair.Flow
	cookie, isn uint32
	choice      cookie.Choice
	state       synproxyState
	seq, ack    uint32
	tsval       uint32
	tsecr       uint32
	timestamps  bool
	fin, rst    bool
	gsoSize     uint16
	distance    uint16 // ms
	age         int32  // of the cookie, in periods

	// ethernet is the frame's header as it arrived: sending it on changes the addresses.
	ethernet [ethernetSize]byte
	// frame is the whole packet, with room for the header that the device wants before it.
	frame   []byte
	at      int // of the TCP header, in the frame
	payload []byte
}

// errBadRecord means that program and process do not fit one another.
var errBadRecord = errors.New("record of the ring is malformed: remove what another version has pinned")

// errChecksum means that a packet was damaged on its way.
var errChecksum = errors.New("checksum is wrong")

// decodePacket reads a record of the ring, and copies what it keeps.
func decodePacket(b []byte) (*packet, error) {
	if len(b) < recordSize {
		return nil, fmt.Errorf("%w: %d bytes", errBadRecord, len(b))
	}
	word := func(at int) uint32 { return binary.NativeEndian.Uint32(b[at:]) }
	flow, err := cookie.DecodeFlow(b)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errBadRecord, err)
	}
	at, header, payload := int(word(recordAt)), int(word(recordHeader)), int(word(recordPayload))
	// Short frames are padded; what counts is what the headers say.
	length := at + header + payload
	if at < ethernetSize+20 || at > ethernetSize+40 || header < 20 || header > 60 || payload < 0 || payload > 1<<16 || length > int(word(recordLength)) ||
		length > len(b)-recordSize {
		return nil, fmt.Errorf("%w: headers of %d and %d bytes, payload of %d in %d", errBadRecord, at, header, payload, len(b))
	}
	flags := b[recordFlags]
	p := &packet{
		flow: flow, cookie: word(recordCookie), isn: word(recordISN), choice: cookie.Choice(word(recordChoice)), state: synproxyState(word(recordState)),
		seq: word(recordSeq), ack: word(recordAck), tsval: word(recordTSVal), tsecr: word(recordTSEcr), timestamps: b[recordTimestamps] != 0,
		fin: flags&flagFIN != 0, rst: flags&flagRST != 0, gsoSize: uint16(word(recordGSOSize)), distance: uint16(word(recordDistance)), age: int32(word(recordAge)), at: at,
	}
	p.frame = make([]byte, vnetSize+length)
	copy(p.frame[vnetSize:], b[recordSize:recordSize+length])
	p.ethernet = [ethernetSize]byte(p.frame[vnetSize:])
	p.payload = p.frame[vnetSize+at+header:]
	return p, p.prepare()
}

// prepare checks the checksum and leaves it to the device that sends the packet on. A packet of this machine, or one that was merged of
// several, has only the part for addresses, ports and length, and nothing has damaged it.
func (p *packet) prepare() error {
	segment := p.frame[vnetSize+p.at:]
	pseudo := pseudoSum(p.flow.Remote.Addr(), p.flow.Local.Addr(), len(segment))
	partial, have := fold(pseudo), binary.BigEndian.Uint16(segment[tcpChecksum:])
	if have != partial && fold(pseudo+sum(segment)) != 0xffff {
		return errChecksum
	}
	binary.BigEndian.PutUint16(segment[tcpChecksum:], partial)
	if segment[13]&0x20 == 0 {
		binary.BigEndian.PutUint16(segment[tcpUrgent:], p.distance)
	}
	putVnet(p.frame, p.at, len(segment)-len(p.payload), p.gsoSize, len(p.payload), p.flow.Local.Addr().Is4())
	return nil
}

// abort returns a RST in the client's name, which a server accepts that has received all before seq.
func (p *packet) abort(seq uint32) *packet {
	header := len(p.frame) - vnetSize - len(p.payload)
	r := *p
	r.frame = append([]byte(nil), p.frame[:vnetSize+header]...)
	r.payload = nil
	segment := r.frame[vnetSize+p.at:]
	binary.BigEndian.PutUint32(segment[4:], seq)
	segment[13] = flagRST | flagACK
	binary.BigEndian.PutUint16(segment[tcpUrgent:], 0)
	binary.BigEndian.PutUint16(segment[tcpChecksum:], fold(pseudoSum(p.flow.Remote.Addr(), p.flow.Local.Addr(), len(segment))))
	ip := r.frame[vnetSize+ethernetSize : vnetSize+p.at]
	if p.flow.Local.Addr().Is4() {
		binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)+len(segment)))
		ip[10], ip[11] = 0, 0
		binary.BigEndian.PutUint16(ip[10:], ^fold(sum(ip)))
	} else {
		binary.BigEndian.PutUint16(ip[4:], uint16(len(segment)))
	}
	putVnet(r.frame, p.at, len(segment), 0, 0, p.flow.Local.Addr().Is4())
	return &r
}

// window is the client's, in bytes.
func (p *packet) window(scale uint8) uint32 {
	return uint32(binary.BigEndian.Uint16(p.frame[vnetSize+p.at+tcpWindow:])) << scale
}

// size is how much of the sequence space it takes.
func (p *packet) size() uint32 {
	n := uint32(len(p.payload))
	if p.fin {
		n++
	}
	return n
}
