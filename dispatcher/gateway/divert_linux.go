// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/dispatcher/session"
)

// What a source may do, as in bpf/table.h.
const (
	sourceServer uint32 = 1
	sourceEntry  uint32 = 2
)

// beatLimit is for how long after a heartbeat packets are diverted. Nothing is pinned: a process that ends takes the programs along; this is for one
// that hangs.
const beatLimit = time.Second

// diverter owns the programs and the taps.
type diverter struct {
	objects gatewayObjects
	nl      *netlink.Handle
	taps    []*tap
	links   []io.Closer

	mu       sync.Mutex
	services []divertedService
	macs     map[string][6]byte // of hosts, by name
}

type divertedService struct {
	keys  []gatewayServiceKey
	roles map[string]uint32 // by host
}

// newDiverter loads the programs and attaches them in the network namespace of the calling thread. Nothing is diverted before the first beat.
func newDiverter(c *Config) (_ *diverter, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	d := &diverter{macs: make(map[string][6]byte)}
	defer func() {
		if err != nil {
			err = errors.Join(explain(err), d.close())
		}
	}()
	if d.nl, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	if err := loadGatewayObjects(&d.objects, nil); err != nil {
		return nil, err
	}
	for _, s := range c.Services {
		d.services = append(d.services, diverted(c, s))
	}
	if err := d.putServices(); err != nil {
		return nil, err
	}
	for _, name := range c.Interfaces {
		if err := d.watch(name); err != nil {
			return nil, fmt.Errorf("interface %s: %w", name, err)
		}
	}
	return d, nil
}

func diverted(c *Config, s ServiceConfig) divertedService {
	out := divertedService{roles: map[string]uint32{c.Dispatcher.Name: sourceEntry}}
	for _, h := range c.Servers {
		if s.serves(h.Name) {
			out.roles[h.Name] = sourceServer
		}
	}
	for _, a := range s.Addresses {
		for _, proto := range s.protocols() {
			k := gatewayServiceKey{Port: order(a.Port()), Proto: proto}
			k.Addr, k.Family = words(a.Addr())
			out.keys = append(out.keys, k)
		}
	}
	return out
}

// watch makes the interface's tap and attaches the programs, the tap's first.
func (d *diverter) watch(name string) error {
	l, err := d.nl.LinkByName(name)
	if err != nil {
		return err
	}
	attrs := l.Attrs()
	if len(attrs.HardwareAddr) != 6 {
		return fmt.Errorf("%w: link type %q has no Ethernet header", errors.ErrUnsupported, attrs.EncapType)
	}
	t, err := newTap(d.nl, attrs)
	if err != nil {
		return err
	}
	d.taps = append(d.taps, t)
	back := gatewayPort{Ifindex: uint32(attrs.Index), Mac: [6]byte(attrs.HardwareAddr)}
	if err := errors.Join(
		d.objects.Ports.Put(uint32(t.ifindex), back),
		d.objects.Ports.Put(uint32(attrs.Index), gatewayPort{Ifindex: uint32(t.ifindex)}),
	); err != nil {
		return fmt.Errorf("register the tap: %w", err)
	}
	if err := d.vacant(attrs.Index); err != nil {
		return err
	}
	for _, at := range []struct {
		ifindex int
		program *ebpf.Program
	}{{t.ifindex, d.objects.RehomeGwBack}, {attrs.Index, d.objects.RehomeGateway}} {
		// First in the chain: a program in front that ends it would hide the signalling.
		l, err := link.AttachTCX(link.TCXOptions{
			Interface: at.ifindex, Program: at.program, Attach: ebpf.AttachTCXIngress, Anchor: link.Head(),
		})
		if err != nil {
			return fmt.Errorf("attach: %w", err)
		}
		d.links = append(d.links, l)
	}
	return nil
}

// vacant looks for another gateway's program: two would divert the same packets from one another.
func (d *diverter) vacant(ifindex int) error {
	present, err := link.QueryPrograms(link.QueryOptions{Target: ifindex, Attach: ebpf.AttachTCXIngress})
	if err != nil {
		return err
	}
	for _, p := range present.Programs {
		other, err := ebpf.NewProgramFromID(p.ID)
		if err != nil {
			continue // gone meanwhile
		}
		info, err := other.Info()
		_ = other.Close() // only looked at
		if err == nil && info.Name == "rehome_gateway" {
			return fmt.Errorf("%w: program %d", ErrAttached, p.ID)
		}
	}
	return nil
}

// learned takes a host's link-layer address.
func (d *diverter) learned(host string, mac net.HardwareAddr) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	old, known := d.macs[host]
	d.macs[host] = [6]byte(mac)
	var errs []error
	for i, s := range d.services {
		role, ok := s.roles[host]
		if !ok {
			continue
		}
		errs = append(errs, d.objects.Sources.Put(gatewaySourceKey{Service: uint32(i), Mac: [6]byte(mac)}, role))
		if known && old != [6]byte(mac) && !d.uses(s, old) {
			errs = append(errs, ignoreMissing(d.objects.Sources.Delete(gatewaySourceKey{Service: uint32(i), Mac: old})))
		}
	}
	return errors.Join(append(errs, d.putServices())...)
}

// known returns how many hosts' link-layer addresses are known.
func (d *diverter) known() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.macs)
}

// uses reports whether a host of the service has the address: d.mu is held.
func (d *diverter) uses(s divertedService, mac [6]byte) bool {
	for host := range s.roles {
		if d.macs[host] == mac {
			return true
		}
	}
	return false
}

// putServices writes the services, strict as soon as all their hosts' addresses are known. d.mu is held, or nobody else there yet.
func (d *diverter) putServices() error {
	var errs []error
	for i, s := range d.services {
		v := gatewayService{Id: uint32(i), Strict: 1}
		for host := range s.roles {
			if _, known := d.macs[host]; !known {
				v.Strict = 0
			}
		}
		for _, k := range s.keys {
			errs = append(errs, d.objects.Services.Put(k, v))
		}
	}
	return errors.Join(errs...)
}

// beat says that the taps are read.
func (d *diverter) beat() error {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return err
	}
	return d.objects.Heartbeat.Put(uint32(0), gatewayBeat{Until: uint64(now.Nano()) + uint64(beatLimit)})
}

// rest says that the taps are not read any more.
func (d *diverter) rest() error { return d.objects.Heartbeat.Put(uint32(0), gatewayBeat{}) }

// exempt lets a flow's packets pass, until its next SYN is seen: nothing more can be read of it.
func (d *diverter) exempt(flow session.Key) error {
	k := gatewayFlowKey{ServerPort: order(flow.Server.Port()), ClientPort: order(flow.Client.Port()), Proto: flow.Protocol}
	k.Server, k.Family = words(flow.Server.Addr())
	k.Client, _ = words(flow.Client.Addr())
	return d.objects.Exemptions.Put(k, uint32(1))
}

// resume ends an exemption: the flow's addresses have a new connection.
func (d *diverter) resume(flow session.Key) error {
	k := gatewayFlowKey{ServerPort: order(flow.Server.Port()), ClientPort: order(flow.Client.Port()), Proto: flow.Protocol}
	k.Server, k.Family = words(flow.Server.Addr())
	k.Client, _ = words(flow.Client.Addr())
	return ignoreMissing(d.objects.Exemptions.Delete(k))
}

// counters sums what the programs have counted.
func (d *diverter) counters() (gatewayCounters, error) {
	var sum gatewayCounters
	var all []gatewayCounters
	if err := d.objects.Stats.Lookup(uint32(0), &all); err != nil {
		return sum, err
	}
	for _, c := range all {
		sum.Diverted += c.Diverted
		sum.Released += c.Released
		sum.Refused += c.Refused
		sum.Unverified += c.Unverified
		sum.Lapsed += c.Lapsed
		sum.Exempt += c.Exempt
		sum.Fragments += c.Fragments
		sum.NoTap += c.NoTap
	}
	return sum, nil
}

// close detaches everything; packets pass from then on. What is in the taps is lost.
func (d *diverter) close() error {
	var errs []error
	for i := len(d.links) - 1; i >= 0; i-- { // the interface's before the tap's
		errs = append(errs, d.links[i].Close())
	}
	for _, t := range d.taps {
		errs = append(errs, t.close())
	}
	errs = append(errs, d.objects.Close())
	if d.nl != nil {
		d.nl.Close()
	}
	return errors.Join(errs...)
}

// words returns an address as the programs' maps have it, and its family.
func words(a netip.Addr) (w [4]uint32, family uint8) {
	raw := a.AsSlice()
	for i := 0; i+4 <= len(raw); i += 4 {
		w[i/4] = uint32(raw[i]) | uint32(raw[i+1])<<8 | uint32(raw[i+2])<<16 | uint32(raw[i+3])<<24
	}
	if a.Is4() {
		return w, 4
	}
	return w, 6
}

// order returns a port in network order on a little-endian machine, which the object is made for.
func order(port uint16) uint16 { return port<<8 | port>>8 }

func ignoreMissing(err error) error {
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	}
	return err
}

// explain adds what to do about the errors an operator meets.
func explain(err error) error {
	var refused *ebpf.VerifierError
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES) && !errors.As(err, &refused):
		return fmt.Errorf("%w: %w", ErrPermission, err)
	case errors.Is(err, ebpf.ErrNotSupported):
		return fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	return err
}
