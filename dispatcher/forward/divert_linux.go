// SPDX-License-Identifier: Apache-2.0

package forward

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/tcprepair"
)

// Reason is why a packet comes by user space.
type Reason uint8

// Reasons: enum reason in bpf/divert.h.
const (
	// Undecided: nobody had said where its flow goes when it came. Assign does.
	Undecided Reason = 1 + iota
	// Waiting: the flow was decided, but a packet before it was still here.
	Waiting
	// Inspected: its flow is signalling.
	Inspected
	// reasonLater: a fragment that follows one that user space has. Nobody sees it: the datagram has the first one's reason.
	reasonLater
)

// reasonCounted is REASON_COUNTED.
const reasonCounted = 128

func (r Reason) String() string {
	switch r {
	case Undecided:
		return "undecided"
	case Waiting:
		return "waiting"
	case Inspected:
		return "inspected"
	}
	return fmt.Sprintf("reason %d", uint8(r))
}

// Diverted is a client's packet that waits for Send. Its payload is valid until the function it was given to returns; Clone makes
// one that lasts.
type Diverted struct {
	Reason   Reason
	Flow     tcprepair.Flow // Local is the service's side
	Protocol uint8          // IPPROTO_TCP or IPPROTO_UDP
	Node     gate.Node      // its flow's owner when the packet came; 0 while undecided
	Payload  []byte         // of the transport protocol
	// Of TCP: the sequence number of the segment, which is that of the payload's first byte (of a SYN, of the byte before it), and the header's
	// flags (RFC 9293, 3.1). Segments may be repeated, and come out of order, as the client has sent them.
	Sequence uint32
	Flags    uint8

	frame []byte
	more  [][]byte // frames of the datagram's other fragments
	at    int      // of the payload in frame, or in datagram
	// datagram is what fragments were put together to; nil if it came whole.
	datagram []byte
	number   uint16 // of the flow's diverted packets
	last     bool   // the flow may be released after it
	port     uint16
}

// Clone returns a copy with a payload of its own.
func (d Diverted) Clone() Diverted {
	if d.frame == nil { // none of Divert's
		d.Payload = bytes.Clone(d.Payload)
		return d
	}
	d.frame = bytes.Clone(d.frame)
	if d.datagram != nil { // frames of fragments are its own
		return d
	}
	d.Payload = d.frame[d.at:][:len(d.Payload)]
	return d
}

// decodeDiverted reads a frame of the tap: what the program wrote over its Ethernet addresses, and what it is.
func decodeDiverted(frame []byte) (d Diverted, service uint16, segments uint8, ok bool) {
	if len(frame) < ethernetHeader || frame[0] != 2 || frame[6] != 2 {
		return d, 0, 0, false
	}
	d = Diverted{
		Reason: Reason(frame[1] &^ reasonCounted), last: frame[1]&reasonCounted != 0, Node: gate.Node(binary.LittleEndian.Uint16(frame[2:])), frame: frame,
		number: binary.LittleEndian.Uint16(frame[4:]), port: binary.LittleEndian.Uint16(frame[10:]),
	}
	var segment []byte
	var header int
	if d.Flow, d.Protocol, segment, header, ok = parseFrame(frame); !ok {
		return Diverted{}, 0, 0, false
	}
	if d.Protocol == protoTCP {
		d.Sequence, d.Flags = binary.BigEndian.Uint32(segment[4:]), segment[13]
	}
	d.Payload = segment[header:]
	d.at = cap(frame) - cap(d.Payload)
	return d, binary.LittleEndian.Uint16(frame[8:]), frame[7], true
}

// Send gives a diverted packet to a node, or (0) to this host's own stack. Packets of one flow must be sent in the order in which they
// came; one that is not sent is lost. With the last of them that was diverted, later packets of a decided flow take the short way.
func (f *Forwarder) Send(d Diverted, to gate.Node) error {
	fail := func(err error) error { return &OpError{Op: "send", Flow: d.Flow, Err: err} }
	switch {
	case f.tap == nil:
		return fail(ErrNotDiverted)
	case len(d.frame) < ethernetHeader:
		return fail(errors.New("not a packet of Divert's"))
	case to >= MaxNodes:
		return fail(fmt.Errorf("node %d: at most %d", to, MaxNodes-1))
	}
	for _, frame := range slices.Concat([][]byte{d.frame}, d.more) {
		order := append(frame[:0], 2, 'r', 'f', 'w')
		order = binary.LittleEndian.AppendUint16(order, uint16(to))
		order = append(order, 2, 0, 0, 0)
		binary.LittleEndian.AppendUint16(order, d.port)
		if err := f.tap.write(frame); err != nil {
			return fail(err)
		}
	}
	if !d.last {
		return nil
	}
	of := f.of(d.Protocol)
	ops := []operation{of.operation(forwardCodeOP_RELEASE, d.Flow)}
	ops[0].epoch = uint32(d.number)
	if err := of.run(ops); err != nil {
		return fail(err)
	}
	// Another may have come since, or the flow may be over.
	if err := ops[0].err(); err != nil && !errors.Is(err, gate.ErrBusy) && !errors.Is(err, gate.ErrNoFlow) {
		return fail(err)
	}
	return nil
}

// Idle reports whether no diverted frame waits to be read.
func (f *Forwarder) Idle() bool {
	idle := true
	if f.tap != nil {
		_ = f.tap.conn.Control(func(fd uintptr) {
			fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
			n, err := unix.Poll(fds, 0)
			idle = err == nil && n == 0
		})
	}
	return idle
}

const (
	// divertBatch is how many frames are handled between two looks at the clock.
	divertBatch = 64
	// beats is how often the kernel hears of the reader within Config.DivertTimeout.
	beats = 4
)

// diverter is one run of Divert.
type diverter struct {
	f      *Forwarder
	decide func(Diverted)
	read   map[uint16]uint32 // frames of services since they were last accounted for
	due    bool              // an empty tap is worth telling
	// The frames of one cut packet: whose it is, and how many there were.
	flow   tcprepair.Flow
	number uint16
	frames uint8
	// split has the parts of datagrams that came in fragments.
	split assembly
}

// Divert calls decide for every packet that is diverted, in the order in which they came, until ctx is done. As long as it runs, and
// decide returns in time (Config.DivertTimeout), the kernel relies on it. One at a time.
func (f *Forwarder) Divert(ctx context.Context, decide func(Diverted)) error {
	if f.tap == nil {
		return &OpError{Op: "divert", Err: ErrNotDiverted}
	}
	if !f.tap.reading.TryLock() {
		return &OpError{Op: "divert", Err: errors.New("is running already")}
	}
	defer f.tap.reading.Unlock()
	d := &diverter{f: f, decide: decide, read: make(map[uint16]uint32)}
	if err := d.run(ctx); err != nil {
		return &OpError{Op: "divert", Err: err}
	}
	return nil
}

func (d *diverter) run(ctx context.Context) error {
	t := d.f.tap
	stop := context.AfterFunc(ctx, func() { _ = t.file.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	every := d.f.config.DivertTimeout / beats
	for ctx.Err() == nil {
		if err := d.beat(d.f.config.DivertTimeout); err != nil {
			return err
		}
		if err := t.file.SetReadDeadline(time.Now().Add(every)); err != nil {
			return d.explain(err)
		}
		if ctx.Err() != nil {
			break // the deadline may have replaced the one that ctx has set
		}
		if _, err := d.next(true); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			return d.explain(err)
		}
	}
	// From here on the kernel asks nobody; what waits is dealt with.
	err := errors.Join(d.beat(0), t.file.SetReadDeadline(time.Time{}))
	for n := 1; n > 0 && err == nil; {
		n, err = d.next(false)
	}
	if err != nil {
		return d.explain(err)
	}
	return nil
}

// next handles some frames. If there are none, it waits for them, or not.
func (d *diverter) next(wait bool) (n int, err error) {
	var failed error
	err = d.f.tap.conn.Read(func(uintptr) bool {
		n, failed = d.some()
		return n > 0 || failed != nil || !wait
	})
	return n, errors.Join(failed, err)
}

func (d *diverter) explain(err error) error {
	if errors.Is(err, os.ErrClosed) {
		return ErrClosed
	}
	return err
}

// some handles up to divertBatch frames and returns their number.
func (d *diverter) some() (int, error) {
	for n := range divertBatch {
		frame, err := d.f.tap.read()
		if err != nil {
			return n, err
		}
		if frame == nil {
			return n, d.settle(true)
		}
		d.one(frame)
	}
	return divertBatch, d.settle(false)
}

func (d *diverter) one(frame []byte) {
	p, service, segments, ok := decodeDiverted(frame)
	if !ok {
		d.fragment(frame)
		return
	}
	d.read[service]++
	d.due = true
	if p.Flow != d.flow || p.number != d.number {
		d.flow, d.number, d.frames = p.Flow, p.number, 0
	}
	d.frames++
	p.last = p.last && d.frames == segments // of a packet that the kernel has cut
	d.decide(p)
}

// fragment handles a frame with a part of a datagram: when it makes that whole, the datagram is decided about.
func (d *diverter) fragment(frame []byte) {
	f, ok := parseFragment(frame)
	if !ok || frame[0] != 2 || frame[6] != 2 {
		return
	}
	d.read[binary.LittleEndian.Uint16(frame[8:])]++
	d.due = true
	lost := d.split.lost
	datagram, frames, whole := d.split.add(time.Now(), f, frame)
	d.f.incomplete.Add(d.split.lost - lost)
	if !whole {
		return
	}
	if p, ok := assembled(f.key, datagram, frames); ok {
		d.decide(p)
	}
}

// assembled is decodeDiverted for a datagram that was put together. The label of its first fragment is its own.
func assembled(key fragmentKey, datagram []byte, frames [][]byte) (Diverted, bool) {
	length := 0
	if len(datagram) >= udpHeader {
		length = int(binary.BigEndian.Uint16(datagram[4:]))
	}
	if length < udpHeader || length > len(datagram) {
		return Diverted{}, false
	}
	first := frames[0]
	d := Diverted{
		Reason: Reason(first[1] &^ reasonCounted), last: first[1]&reasonCounted != 0, Node: gate.Node(binary.LittleEndian.Uint16(first[2:])),
		number: binary.LittleEndian.Uint16(first[4:]), port: binary.LittleEndian.Uint16(first[10:]), frame: first, more: frames[1:],
		Protocol: protoUDP, datagram: datagram, at: udpHeader, Payload: datagram[udpHeader:length],
	}
	d.Flow.Remote = netip.AddrPortFrom(key.source, binary.BigEndian.Uint16(datagram))
	d.Flow.Local = netip.AddrPortFrom(key.destination, binary.BigEndian.Uint16(datagram[2:]))
	return d, d.Flow.IsValid()
}

// settle tells the kernel how many frames of each service have been read. In an empty tap there is none that has not: what was lost on the
// way there counts as read.
func (d *diverter) settle(empty bool) error {
	if empty && !d.due {
		return nil
	}
	d.due = !empty
	for service, n := range d.read {
		if n == 0 && !empty {
			continue
		}
		if err := d.f.table.accountFor(service, n, empty); err != nil {
			return err
		}
		d.read[service] = 0
	}
	return nil
}

// beat lets the kernel rely on this process for a time.
func (d *diverter) beat(timeout time.Duration) error {
	until := uint64(0)
	if timeout > 0 {
		until = uint64(monotonic() + timeout)
	}
	for _, service := range d.f.table.numbers.all() {
		d.read[service] += 0
	}
	d.due = true
	return d.f.table.setReading(until)
}

// accountFor advances what has been read of a service: by n, or to all there was.
func (t *table) accountFor(service uint16, n uint32, all bool) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return ErrClosed
	}
	at := int64(service) * policySize
	var b [4]byte
	from := at + policyRead
	if all {
		from = at + policyDiverted
	}
	if _, err := t.policies.ReadAt(b[:], from); err != nil {
		return err
	}
	if !all {
		binary.NativeEndian.PutUint32(b[:], binary.NativeEndian.Uint32(b[:])+n)
	}
	_, err := t.policies.WriteAt(b[:], at+policyRead)
	return err
}

// setReading says until when somebody reads the tap.
func (t *table) setReading(until uint64) error {
	return t.setOverall(readingAt, binary.NativeEndian.AppendUint64(nil, until))
}

func (t *table) setTap(ifindex int) error {
	if err := t.setReading(0); err != nil {
		return err
	}
	return t.setOverall(tapAt, binary.NativeEndian.AppendUint32(nil, uint32(ifindex)))
}

// setOverall writes a field of struct control as one.
func (t *table) setOverall(at int64, b []byte) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return ErrClosed
	}
	_, err := t.overall.WriteAt(b, at)
	return err
}
