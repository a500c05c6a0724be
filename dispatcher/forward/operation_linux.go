// SPDX-License-Identifier: Apache-2.0

package forward

import (
	"encoding/binary"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/tcprepair"
)

// Size and number of struct operation in bpf/operation.h.
const (
	operationSize = 72
	maxOperations = 64
)

// tick is the unit of the table's clock, TICK_SHIFT in bpf/table.h.
const tick = 1 << 20 * time.Nanosecond

// routeEpoch is where the epoch begins in a route word, routeNode the node.
const (
	routeEpoch = 32
	routeNode  = 16
)

// Flags of a route word, as in bpf/table.h.
const (
	routeFresh     = 2
	routeClosing   = 8
	routeInspect   = 16
	routeSecondary = 32
)

// operation is one question to the kernel and its answer.
type operation struct {
	code  forwardCode
	epoch uint32 // or flags, or a number: see bpf/operation.h
	node  gate.Node
	proto uint8
	flow  tcprepair.Flow

	result    int32
	route     uint64
	idle      uint32
	forwarded uint32
}

// encode writes struct operation; the object is little-endian, addresses and ports are as in packets.
func (o *operation) encode(b []byte) {
	clear(b)
	binary.LittleEndian.PutUint32(b, uint32(o.code))
	binary.LittleEndian.PutUint32(b[8:], o.epoch)
	binary.LittleEndian.PutUint32(b[12:], uint32(o.node))
	local, remote := o.flow.Local.Addr(), o.flow.Remote.Addr()
	family := byte(4)
	if local.Is4() {
		l, r := local.As4(), remote.As4()
		copy(b[16:], l[:])
		copy(b[32:], r[:])
	} else {
		l, r := local.As16(), remote.As16()
		copy(b[16:], l[:])
		copy(b[32:], r[:])
		family = 6
	}
	binary.BigEndian.PutUint16(b[48:], o.flow.Remote.Port())
	binary.BigEndian.PutUint16(b[50:], o.flow.Local.Port())
	b[52], b[53] = o.proto, family
}

// decode reads the answer.
func (o *operation) decode(b []byte) {
	o.result = int32(binary.LittleEndian.Uint32(b[4:]))
	o.route = binary.LittleEndian.Uint64(b[56:])
	o.idle = binary.LittleEndian.Uint32(b[64:])
	o.forwarded = binary.LittleEndian.Uint32(b[68:])
}

// check says what keeps the kernel from being asked.
func (o *operation) check() error {
	if !o.flow.IsValid() {
		return fmt.Errorf("flow %v: both ends need an address of one family and a port", o.flow)
	}
	if o.node >= MaxNodes {
		return fmt.Errorf("node %d: at most %d", o.node, MaxNodes-1)
	}
	return nil
}

// err turns the result into an error.
func (o *operation) err() error {
	if err := o.check(); err != nil {
		return err
	}
	switch errno := unix.Errno(-o.result); errno {
	case 0:
		return nil
	case unix.ENOENT:
		return gate.ErrNoFlow
	case unix.ESTALE:
		return gate.ErrEpoch
	case unix.EEXIST:
		return gate.ErrExists
	case unix.E2BIG:
		return ErrFull
	case unix.EAGAIN:
		return gate.ErrBusy
	default:
		return errno
	}
}

// info reads the entry the operation has left.
func (o *operation) info() gate.RouteInfo {
	r := gate.RouteInfo{
		Node: gate.Node(o.route >> routeNode), Epoch: uint32(o.route >> routeEpoch), Forwarded: uint64(o.forwarded),
	}
	if idle := int32(o.idle); idle > 0 {
		r.Idle = time.Duration(idle) * tick
	}
	return r
}
