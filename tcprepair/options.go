// SPDX-License-Identifier: Apache-2.0

package tcprepair

import "fmt"

// maxName is the longest congestion control or device name, in bytes (TCP_CA_NAME_MAX and IFNAMSIZ less the final zero).
const maxName = 15

// Options are the socket options a server sets. Numbers are the kernel's, in the unit of the socket option. The zero value of a field
// is what a new socket has, and costs no system call on restore; where a kernel default is itself adjustable (keepalive times, TTL),
// zero stands for the default of an unconfigured kernel.
//
// Not carried: options of listeners (TCP_DEFER_ACCEPT, TCP_FASTOPEN), TCP_QUICKACK (which the kernel forgets by itself),
// IP_OPTIONS and IPv6 extension headers, filters (SO_ATTACH_BPF), ancillary data requests (IP_RECVTOS and kin), IP_TRANSPARENT,
// and shutdown(SHUT_RD). SO_REUSEADDR is always on after a move: repair mode forgets it, and without it a listener could not
// bind.
type Options struct {
	// KeepAlive (SO_KEEPALIVE); KeepIdle and KeepInterval are seconds, KeepCount probes.
	KeepAlive    bool
	KeepIdle     uint32
	KeepInterval uint32
	KeepCount    uint32
	NoDelay      bool
	Cork         bool
	// UserTimeout (TCP_USER_TIMEOUT) is in milliseconds.
	UserTimeout uint32
	// FinTimeout (TCP_LINGER2) is in seconds.
	FinTimeout uint32
	// NotSentLowWater (TCP_NOTSENT_LOWAT) is in bytes.
	NotSentLowWater uint32
	// Linger is SO_LINGER; LingerSeconds counts only if it is on.
	Linger        bool
	LingerSeconds uint32
	// TrafficClass is IP_TOS or IPV6_TCLASS, HopLimit IP_TTL or IPV6_UNICAST_HOPS.
	TrafficClass uint32
	HopLimit     uint32
	// Priority (SO_PRIORITY), Mark (SO_MARK): the mark also chooses routes.
	Priority uint32
	Mark     uint32
	// V6Only is IPV6_V6ONLY, of IPv6 sockets only.
	V6Only bool
	// OOBInline (SO_OOBINLINE) puts urgent data in the stream.
	OOBInline bool
	// ReceiveLowWater (SO_RCVLOWAT) is in bytes.
	ReceiveLowWater uint32
	// PeekOffset is SO_PEEK_OFF plus one.
	PeekOffset uint32
	// NonBlocking is O_NONBLOCK of the file description.
	NonBlocking bool
	// SendBuffer and ReceiveBuffer are sizes as getsockopt tells them (twice what setsockopt took), in bytes. They were fixed
	// by the server if locked; if not, they are how far the kernel's autotuning had come, and it goes on from there.
	SendBuffer          uint32
	ReceiveBuffer       uint32
	SendBufferLocked    bool
	ReceiveBufferLocked bool
	// WindowClamp (TCP_WINDOW_CLAMP) is the largest window we announce, in bytes.
	WindowClamp uint32
	// MaxPacingRate (SO_MAX_PACING_RATE) is in bytes per second.
	MaxPacingRate uint64
	// Congestion is the name of the congestion control. If the target's kernel does not have it, the default stays.
	Congestion string
	// Device is the interface that SO_BINDTODEVICE bound the socket to; the target must have one of this name.
	Device string
}

// optionField is one numeric field of Options on its way to or from the wire: exactly one of the pointers is set.
type optionField struct {
	id     uint16
	flag   *bool
	number *uint32
}

// fields lists the numeric options in the order of their wire numbers, which are append-only. Numbers from optionalFrom on may be
// skipped by a reader that does not know them.
func (o *Options) fields() [25]optionField {
	return [...]optionField{
		{1, &o.KeepAlive, nil},
		{2, nil, &o.KeepIdle},
		{3, nil, &o.KeepInterval},
		{4, nil, &o.KeepCount},
		{5, &o.NoDelay, nil},
		{6, &o.Cork, nil},
		{7, nil, &o.UserTimeout},
		{8, nil, &o.FinTimeout},
		{9, nil, &o.NotSentLowWater},
		{10, &o.Linger, nil},
		{11, nil, &o.LingerSeconds},
		{12, nil, &o.TrafficClass},
		{13, nil, &o.HopLimit},
		{14, nil, &o.Priority},
		{15, nil, &o.Mark},
		{16, &o.V6Only, nil},
		{17, &o.OOBInline, nil},
		{18, nil, &o.ReceiveLowWater},
		{19, nil, &o.PeekOffset},
		{20, &o.NonBlocking, nil},
		{21, nil, &o.SendBuffer},
		{22, nil, &o.ReceiveBuffer},
		{23, &o.SendBufferLocked, nil},
		{24, &o.ReceiveBufferLocked, nil},
		{25, nil, &o.WindowClamp},
	}
}

func (o *Options) validate() error {
	const maxInt = 1<<31 - 1
	fields := o.fields()
	for i := range fields {
		f := &fields[i]
		// The kernel takes ints. Marks are 32 bits wide.
		if f.number != nil && *f.number > maxInt && f.number != &o.Mark && f.number != &o.NotSentLowWater {
			return fmt.Errorf("%w: option %d is %d", ErrCorrupt, f.id, *f.number)
		}
	}
	if o.TrafficClass > 255 || o.HopLimit > 255 || len(o.Congestion) > maxName || len(o.Device) > maxName {
		return fmt.Errorf("%w: options %+v", ErrCorrupt, *o)
	}
	return nil
}
