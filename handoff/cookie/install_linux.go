// SPDX-License-Identifier: Apache-2.0

package cookie

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/tcprepair"
)

// Maps are those of bpf/cookie.h and bpf/segment.h, which the dispatcher's program has, too.
type Maps struct {
	Settings, Active, Services *ebpf.Map
}

// Announcement is what only the dispatcher's program needs to know.
type Announcement struct {
	// MSS4 and MSS6 are the largest segments that servers take, Window their first window in bytes.
	MSS4, MSS6 uint16
	Window     uint16
	// ECN is whether it is negotiated.
	ECN bool
	// PassStrays leaves what belongs to no connection to the host's stack.
	PassStrays bool
	// Shortcut sends answers to the other end of the interface's veth pair at once (package shortcut).
	Shortcut bool
}

// Flags of struct setting.
const (
	flagECN        = 1
	flagPassStrays = 2
	flagShortcut   = 4
)

// Install makes the programs use the parameters, from one packet to the next. It must be called from time to time, lest the
// host's wall clock and the kernel's monotonic one drift apart: once in an hour is more than enough, and after the clock was set.
func (m Maps) Install(p Parameters, a Announcement) error {
	if err := p.validate(); err != nil {
		return err
	}
	p = p.withDefaults()
	offset, err := clockOffset()
	if err != nil {
		return err
	}
	var which uint32
	if err := m.Active.Lookup(uint32(0), &which); err != nil {
		return fmt.Errorf("active setting: %w", err)
	}
	next := 1 - which&1
	v := cookieSetting{Offset: uint64(offset), Scale: uint32(p.WindowScale), Window: uint32(a.Window), Mss4: a.MSS4, Mss6: a.MSS6}
	for i, k := range []Secret{p.Secret, p.Also} {
		v.Secrets[i].Low, v.Secrets[i].High = binary.LittleEndian.Uint64(k[:8]), binary.LittleEndian.Uint64(k[8:])
	}
	if p.Also != (Secret{}) {
		v.Second = 1
	}
	if a.ECN {
		v.Flags |= flagECN
	}
	if a.PassStrays {
		v.Flags |= flagPassStrays
	}
	if a.Shortcut {
		v.Flags |= flagShortcut
	}
	if err := m.Settings.Put(next, v); err != nil {
		return fmt.Errorf("write setting: %w", err)
	}
	if err := m.Active.Put(uint32(0), next); err != nil {
		return fmt.Errorf("activate setting: %w", err)
	}
	return nil
}

// clockOffset is how far the wall clock is ahead of the kernel's monotonic one.
func clockOffset() (time.Duration, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return 0, fmt.Errorf("clock: %w", err)
	}
	return time.Duration(time.Now().UnixNano() - ts.Nano()), nil
}

// AddService has connections to the address begin with cookies, RemoveService no more.
func (m Maps) AddService(a netip.AddrPort) error {
	if !a.IsValid() || a.Port() == 0 {
		return fmt.Errorf("service %v: want an address and a port", a)
	}
	if err := m.Services.Put(serviceKey(a), uint32(1)); err != nil {
		return fmt.Errorf("service %v: %w", a, err)
	}
	return nil
}

// RemoveService is described at AddService. Removing an unknown one is no error.
func (m Maps) RemoveService(a netip.AddrPort) error {
	if err := m.Services.Delete(serviceKey(a)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("service %v: %w", a, err)
	}
	return nil
}

// List returns the services.
func (m Maps) List() ([]netip.AddrPort, error) {
	var all []netip.AddrPort
	var k cookieService
	var v uint32
	it := m.Services.Iterate()
	for it.Next(&k, &v) {
		var b [16]byte
		for i, word := range k.Addr {
			binary.NativeEndian.PutUint32(b[4*i:], word)
		}
		addr := netip.AddrFrom16(b)
		if k.Family == 4 {
			addr = netip.AddrFrom4([4]byte(b[:4]))
		}
		all = append(all, netip.AddrPortFrom(addr, binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, k.Port))))
	}
	if err := it.Err(); err != nil {
		return nil, fmt.Errorf("services: %w", err)
	}
	return all, nil
}

// Installed returns the parameters of the last Install; the zero value if there was none. With a pinned map that may have been another
// process's.
func (m Maps) Installed() (Parameters, error) {
	var which uint32
	var v cookieSetting
	err := m.Active.Lookup(uint32(0), &which)
	if err == nil {
		err = m.Settings.Lookup(which&1, &v)
	}
	if err != nil {
		return Parameters{}, fmt.Errorf("installed parameters: %w", err)
	}
	p := Parameters{WindowScale: uint8(v.Scale)}
	for i, k := range []*Secret{&p.Secret, &p.Also} {
		binary.LittleEndian.PutUint64(k[:8], v.Secrets[i].Low)
		binary.LittleEndian.PutUint64(k[8:], v.Secrets[i].High)
	}
	return p, nil
}

func serviceKey(a netip.AddrPort) cookieService {
	k := cookieService{Family: 6, Port: binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, a.Port()))}
	addr := a.Addr().Unmap()
	if addr.Is4() {
		k.Family = 4
	}
	for i, b := 0, addr.AsSlice(); len(b) > 0; i, b = i+1, b[4:] {
		k.Addr[i] = binary.NativeEndian.Uint32(b)
	}
	return k
}

// FlowSize is that of struct flow of bpf/segment.h.
const FlowSize = 40

// DecodeFlow reads a struct flow, and AppendFlow writes one.
func DecodeFlow(b []byte) (tcprepair.Flow, error) {
	if len(b) < FlowSize {
		return tcprepair.Flow{}, fmt.Errorf("flow of %d bytes, want %d", len(b), FlowSize)
	}
	remotePort, localPort := binary.BigEndian.Uint16(b[32:]), binary.BigEndian.Uint16(b[34:])
	switch binary.NativeEndian.Uint32(b[36:]) {
	case 4:
		return tcprepair.Flow{
			Local:  netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[16:])), localPort),
			Remote: netip.AddrPortFrom(netip.AddrFrom4([4]byte(b)), remotePort),
		}, nil
	case 6:
		return tcprepair.Flow{
			Local:  netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[16:])), localPort),
			Remote: netip.AddrPortFrom(netip.AddrFrom16([16]byte(b)), remotePort),
		}, nil
	}
	return tcprepair.Flow{}, fmt.Errorf("flow of address family %d", binary.NativeEndian.Uint32(b[36:]))
}

// AppendFlow is described at DecodeFlow.
func AppendFlow(b []byte, f tcprepair.Flow) []byte {
	family := uint32(6)
	if f.Local.Addr().Is4() {
		family = 4
	}
	for _, a := range []netip.Addr{f.Remote.Addr(), f.Local.Addr()} {
		b = append(b, a.AsSlice()...)
		if family == 4 {
			b = append(b, make([]byte, 12)...)
		}
	}
	b = binary.BigEndian.AppendUint16(b, f.Remote.Port())
	b = binary.BigEndian.AppendUint16(b, f.Local.Port())
	return binary.NativeEndian.AppendUint32(b, family)
}
