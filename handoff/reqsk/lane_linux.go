// SPDX-License-Identifier: Apache-2.0

package reqsk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/tcprepair"
)

// Places in a slot: struct slot of bpf/reqsk.c.
const (
	slotSize     = 128
	slotOp       = 0
	slotIPv6     = 4
	slotTuple    = 8
	slotAttrs    = 44
	slotReceive  = 64
	slotSend     = 68
	slotPayload  = 72
	slotAttempt  = 76
	slotResult   = 80
	slotOutcome  = 84
	slotState    = 88
	slotReceived = 92
	slotSent     = 96
	slotWindow   = 100
)

// lane is one queue of the device, and what the programs and the process say to each other about its frames. One goroutine uses it at a
// time. The kernel receives a frame within write, so the answer is there when write returns.
type lane struct {
	fd    int
	slot  []byte // mapped
	frame []byte
	// attempt counts frames, so that the programs do not take one for another.
	attempt uint32
}

// answer is what the programs have said of one frame.
type answer struct {
	result  reqskResult
	outcome reqskOutcome
	state   uint32 // of the socket found
	// received is the sequence number that the socket expects, sent the one it will send next.
	received, sent uint32
	// window is how much it would take.
	window uint32
}

// set writes what the lane's next frames are about.
func (l *lane) set(t *stream) {
	s := l.slot
	clear(s)
	at := slotTuple
	put := func(b []byte) { at += copy(s[at:], b) }
	put(t.flow.Remote.Addr().AsSlice())
	put(t.flow.Local.Addr().AsSlice())
	binary.BigEndian.PutUint16(s[at:], t.flow.Remote.Port())
	binary.BigEndian.PutUint16(s[at+2:], t.flow.Local.Port())
	if t.ipv6() {
		s[slotIPv6] = 1
	}
	n := t.options
	a := s[slotAttrs:]
	binary.LittleEndian.PutUint32(a[4:], t.timestamp)
	binary.LittleEndian.PutUint16(a[8:], n.MSS)
	a[10], a[11] = n.ReceiveScale, n.SendScale
	for i, on := range [...]bool{n.ECN, n.WindowScaling, n.SACK, n.Timestamps, n.Timestamps && microseconds(t.timestamp)} {
		if on {
			a[12+i] = 1
		}
	}
	binary.LittleEndian.PutUint32(s[slotReceive:], t.seq-1)
	binary.LittleEndian.PutUint32(s[slotSend:], t.ack-1)
}

// send gives one segment to the kernel for a purpose and returns what the programs say.
func (l *lane) send(t *stream, op reqskOp, g segment) (answer, error) {
	s := l.slot
	binary.LittleEndian.PutUint32(s[slotPayload:], uint32(len(g.payload)))
	l.attempt++
	binary.LittleEndian.PutUint32(s[slotAttempt:], l.attempt)
	clear(s[slotResult : slotWindow+4])
	binary.LittleEndian.PutUint32(s[slotOp:], uint32(op))
	l.frame = t.appendFrame(l.frame[:0], g)
	err := write(l.fd, l.frame)
	binary.LittleEndian.PutUint32(s[slotOp:], uint32(reqskOpOP_NONE))
	if err != nil {
		return answer{}, fmt.Errorf("%w: write to the device: %w", ErrRefused, err)
	}
	return answer{
		result:   reqskResult(binary.LittleEndian.Uint32(s[slotResult:])),
		outcome:  reqskOutcome(binary.LittleEndian.Uint32(s[slotOutcome:])),
		state:    binary.LittleEndian.Uint32(s[slotState:]),
		received: binary.LittleEndian.Uint32(s[slotReceived:]),
		sent:     binary.LittleEndian.Uint32(s[slotSent:]),
		window:   binary.LittleEndian.Uint32(s[slotWindow:]),
	}, nil
}

// check looks at the connection. The frame goes no further than the program.
func (l *lane) check(t *stream) (answer, error) {
	return l.send(t, reqskOpOP_CHECK, segment{})
}

// tries is how many frames are sent to see that a lane works. Steering would choose a CPU for each: not all of them are this one.
const tries = 32

// try makes sure that frames are received within write: everything here rests on that. Where new devices steer packets to other CPUs they
// are not.
func (l *lane) try() error {
	local := netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 0, 8}), 1)
	for i := range tries {
		s := tcprepair.Snapshot{
			Flow:  tcprepair.NewFlow(local, netip.AddrPortFrom(local.Addr(), uint16(i+1))),
			State: tcprepair.Established, Negotiated: tcprepair.Negotiated{MSS: smallestMSS4},
		}
		t, err := newStream(&s)
		if err != nil {
			return err
		}
		l.set(t)
		a, err := l.check(t)
		if err != nil {
			return err
		}
		if a.result == reqskResultRESULT_NONE {
			return ErrSteering
		}
	}
	return nil
}

func write(fd int, b []byte) error {
	for {
		_, err := unix.Write(fd, b)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
