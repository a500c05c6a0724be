// SPDX-License-Identifier: Apache-2.0

package forward

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"

	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/tcprepair"
)

// Known is what the table knows of one flow.
type Known struct {
	Flow      tcprepair.Flow
	Protocol  uint8
	Node      gate.Node
	Epoch     uint32
	Idle      time.Duration // since its last packet, to about a millisecond
	Packets   uint32        // sent on by the kernel, modulo 2^32
	Fresh     bool          // in its handshake
	Closing   bool          // its client has sent FIN or RST
	Inspected bool          // signalling
	Secondary bool          // was announced
	Undecided bool          // waits for Assign
}

// Cursor is a place in the tables. They begin at 0.
type Cursor uint64

// Sizes of struct slot4, struct slot6 and of a guard word; guardLive is GUARD_LIVE.
const (
	slot4Size   = 32
	slot6Size   = 64
	guardSize   = 4
	guardLive   = 3
	metaDivert  = 1 << 31
	verdictDead = 2
)

// scanLines is how many lines of the table one step looks through.
const scanLines = 64

// views are the tables as this process sees them: they are the kernel's own memory, read while packets change it.
type views struct {
	lines, slots *ebpf.Memory
	count        uint32 // lines
	v6           bool
}

// Scan copies what is known of flows, from at on, and returns how many there were and where to go on: 0 at the end. It reads the kernel's memory and
// costs some nanoseconds a flow; packets do not wait for it. A flow that is there all the time comes once; one that comes or goes meanwhile may
// be missed or seen.
func (f *Forwarder) Scan(at Cursor, into []Known) (n int, next Cursor, err error) {
	f.scan.Lock()
	defer f.scan.Unlock()
	if f.views == nil {
		if f.views, err = f.table.view(); err != nil {
			return 0, 0, &OpError{Op: "scan", Err: err}
		}
	}
	if len(into) < lineSlots {
		return 0, 0, &OpError{Op: "scan", Err: fmt.Errorf("room for %d flows: want at least %d", len(into), lineSlots)}
	}
	first, clock := uint64(f.views[0].count), now()
	for end := first + uint64(f.views[1].count); uint64(at) < end; {
		v, line, left := &f.views[0], uint64(at), first-uint64(at)
		if uint64(at) >= first {
			v, line, left = &f.views[1], uint64(at)-first, end-uint64(at)
		}
		lines := min(left, scanLines, uint64(len(into)-n)/lineSlots)
		if lines == 0 {
			return n, at, nil
		}
		found, err := v.read(uint32(line), uint32(lines), clock, into[n:])
		if err != nil {
			return n, at, &OpError{Op: "scan", Err: err}
		}
		n += found
		at += Cursor(lines)
	}
	return n, 0, nil
}

// view maps the tables.
func (t *table) view() (*[2]views, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, ErrClosed
	}
	var all [2]views
	for i, m := range []struct{ lines, slots *ebpf.Map }{{t.objects.Lines4, t.objects.Slots4}, {t.objects.Lines6, t.objects.Slots6}} {
		lines, err := m.lines.Memory()
		if err != nil {
			return nil, fmt.Errorf("map the table: %w", err)
		}
		slots, err := m.slots.Memory()
		if err != nil {
			return nil, fmt.Errorf("map the table: %w", err)
		}
		all[i] = views{lines: lines, slots: slots, count: m.lines.MaxEntries(), v6: i == 1}
	}
	return &all, nil
}

// read decodes the flows of some lines. A slot is trusted if its guard word is the same before and after: it is put to another
// use seconds after its flow has gone.
func (v *views) read(line, lines, clock uint32, into []Known) (n int, err error) {
	size := slot4Size
	if v.v6 {
		size = slot6Size
	}
	count := int(lines) * lineSlots
	var guards [scanLines * lineSlots * guardSize]byte
	var slot [slot6Size]byte
	var again [guardSize]byte
	first := int64(line) * lineSlots
	if _, err := v.lines.ReadAt(guards[:count*guardSize], first*guardSize); err != nil && !errors.Is(err, io.EOF) {
		return 0, err
	}
	for i := range count {
		guard := guards[i*guardSize:][:guardSize]
		if guard[0] != guardLive {
			continue
		}
		if _, err := v.slots.ReadAt(slot[:size], (first+int64(i))*int64(size)); err != nil {
			return n, err
		}
		if _, err := v.lines.ReadAt(again[:], (first+int64(i))*guardSize); err != nil {
			return n, err
		}
		if [guardSize]byte(guard) != again {
			continue
		}
		var ok bool
		if into[n], ok = decodeSlot(slot[:size], clock); ok {
			n++
		}
	}
	return n, nil
}

// decodeSlot reads struct slot4 or struct slot6; not ok if nothing holds for the flow any more.
func decodeSlot(b []byte, clock uint32) (k Known, ok bool) {
	route, meta := binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint32(b[20:])
	if byte(route>>8) >= verdictDead {
		return k, false
	}
	var local, remote netip.Addr
	if len(b) == slot4Size {
		local, remote = netip.AddrFrom4([4]byte(b[24:])), netip.AddrFrom4([4]byte(b[28:]))
	} else {
		local, remote = netip.AddrFrom16([16]byte(b[24:])), netip.AddrFrom16([16]byte(b[40:]))
	}
	k = Known{
		Flow: tcprepair.Flow{
			Local:  netip.AddrPortFrom(local, binary.BigEndian.Uint16(b[18:])),
			Remote: netip.AddrPortFrom(remote, binary.BigEndian.Uint16(b[16:])),
		},
		Protocol: uint8(meta), Node: gate.Node(route >> routeNode), Epoch: uint32(route >> routeEpoch),
		Packets: binary.LittleEndian.Uint32(b[12:]),
		Fresh:   route&routeFresh != 0, Closing: route&routeClosing != 0,
		Inspected: route&routeInspect != 0, Secondary: route&routeSecondary != 0,
	}
	k.Undecided = meta&metaDivert != 0 && k.Node == 0 && k.Epoch == 1
	if idle := int32(clock - binary.LittleEndian.Uint32(b[8:])); idle > 0 {
		k.Idle = time.Duration(idle) * tick
	}
	return k, true
}
