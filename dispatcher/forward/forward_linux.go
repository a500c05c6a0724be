// SPDX-License-Identifier: Apache-2.0

package forward

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/handoff/gate"
)

// Forwarder stands at the interfaces of a dispatcher's host. Its own methods of Flows are about TCP. All are safe for
// concurrent use.
type Forwarder struct {
	*Flows
	udp    Flows
	config Config
	mode   Mode
	nl     *netlink.Handle
	points []*point
	tap    *tap // nil without Config.Divert

	incomplete atomic.Uint64 // datagrams of which fragments are missing

	nodes sync.Mutex // a node's entry is read and written back

	namespace netns.NsHandle // of points; Run may be called elsewhere
	handles   sync.RWMutex   // who uses nl or namespace has it for reading, as Close may come at any time
	ports     sync.Mutex     // of what of points changes

	scan  sync.Mutex
	views *[2]views // nil before the first Scan

	mu     sync.Mutex
	swept  map[uint32]census // by family
	closed bool
}

// maxPorts is PORTS in bpf/table.h.
const maxPorts = 1024

// point is one interface the forwarder stands at.
type point struct {
	name     string
	ifindex  int
	mac      net.HardwareAddr
	mtu      int
	attached attachment

	// Under Forwarder.ports, as mac:
	short bool  // frames leave by the shortcut
	why   error // why not
}

// Open loads the programs and attaches them in the network namespace of the calling thread. With Config.PinPath it goes
// on with what is pinned there; the programs of a former process are replaced without a gap.
//
// Errors to expect: ErrPermission, ErrUnsupported, ErrAttached.
func Open(config Config) (_ *Forwarder, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer func() {
		if err != nil {
			err = &OpError{Op: "open", Err: explain(err)}
		}
	}()
	if err := config.validate(); err != nil {
		return nil, err
	}
	if err := haveTCX(); errors.Is(err, unix.EINVAL) {
		return nil, fmt.Errorf("%w: it has no tcx", ErrUnsupported)
	}
	f := &Forwarder{config: config.withDefaults(), swept: make(map[uint32]census), namespace: netns.None()}
	defer func() {
		if err != nil {
			_ = f.Close()
		}
	}()
	if f.nl, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	if f.namespace, err = netns.Get(); err != nil {
		return nil, fmt.Errorf("network namespace: %w", err)
	}
	objects, err := load(f.config)
	if err != nil {
		return nil, err
	}
	t, err := newTable(objects)
	if err != nil {
		return nil, errors.Join(err, objects.Close())
	}
	f.Flows = &Flows{table: t, proto: protoTCP, diverts: f.config.Divert}
	f.udp = Flows{table: t, proto: protoUDP, diverts: f.config.Divert}
	if f.config.PinPath != "" {
		if err := t.settleAll(); err != nil {
			return nil, err
		}
	}
	for _, name := range f.config.Interfaces {
		if err := f.locate(name); err != nil {
			return nil, fmt.Errorf("interface %s: %w", name, err)
		}
	}
	if f.config.Divert {
		if err := f.openTap(); err != nil {
			return nil, err
		}
	}
	return f, f.attach()
}

// UDP returns the flows and services of UDP.
func (f *Forwarder) UDP() *Flows { return &f.udp }

// Mode tells where packets are looked at: TCX also where XDP was wished for and did not pass the probe.
func (f *Forwarder) Mode() Mode { return f.mode }

// locate registers an interface, before anything is attached to it.
func (f *Forwarder) locate(name string) error {
	l, err := f.nl.LinkByName(name)
	if err != nil {
		return err
	}
	attrs := l.Attrs()
	if attrs.EncapType != "ether" || len(attrs.HardwareAddr) != 6 {
		return fmt.Errorf("%w: link type %q has no Ethernet header", errors.ErrUnsupported, attrs.EncapType)
	}
	p := &point{name: name, ifindex: attrs.Index, mac: attrs.HardwareAddr, mtu: attrs.MTU, why: errUnproved}
	if err := f.register(p); err != nil {
		return err
	}
	f.points = append(f.points, p)
	return nil
}

// register tells the programs which frames are for this host, and how frames leave by the interface.
func (f *Forwarder) register(p *point) error {
	for _, other := range f.points {
		if other != p && other.ifindex%maxPorts == p.ifindex%maxPorts {
			return fmt.Errorf("its index and that of %s differ by a multiple of %d: make one of them anew", other.name, maxPorts)
		}
	}
	port := forwardPort{Ifindex: uint32(p.ifindex), Mac: [6]uint8(p.mac)}
	if p.short {
		port.Flags = portPeer
	}
	if err := f.table.objects.Ports.Put(uint32(p.ifindex%maxPorts), port); err != nil {
		return fmt.Errorf("register its MAC address: %w", err)
	}
	return nil
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

// SetNode says how a node is reached: frames leave by the interface, from MAC src to MAC dst (SARA S23: a static table of
// nodes, no tunnel and no address translation). In mode XDP the interface must be one of Config.Interfaces: only there
// is it known that frames get out.
func (f *Forwarder) SetNode(n gate.Node, ifindex int, dst, src net.HardwareAddr) error {
	fail := func(err error) error { return &OpError{Op: "set node", Err: fmt.Errorf("node %d: %w", n, err)} }
	switch {
	case n == 0 || n >= MaxNodes:
		return fail(fmt.Errorf("want 1 to %d (0 is this host)", MaxNodes-1))
	case ifindex <= 0 || len(dst) != 6 || len(src) != 6:
		return fail(errors.New("want an interface and two Ethernet addresses"))
	case f.mode == XDP && !slices.ContainsFunc(f.points, func(p *point) bool { return p.ifindex == ifindex }):
		return fail(fmt.Errorf("interface %d is not one of %v, to which XDP may redirect", ifindex, f.config.Interfaces))
	}
	return f.changeNode("set node", n, func(v *forwardNode) {
		v.Ifindex = uint32(ifindex)
		v.Dst, v.Src = [6]uint8(dst), [6]uint8(src)
	})
}

// DrainNode takes a node out of the choice for new flows, or puts it back. 0 drains this host itself.
func (f *Forwarder) DrainNode(n gate.Node, drain bool) error {
	return f.changeNode("drain node", n, func(v *forwardNode) {
		v.Flags = 0
		if drain {
			v.Flags = 1
		}
	})
}

func (f *Forwarder) changeNode(op string, n gate.Node, change func(*forwardNode)) error {
	f.nodes.Lock()
	defer f.nodes.Unlock()
	var v forwardNode
	err := f.table.objects.Nodes.Lookup(uint32(n), &v)
	if err == nil {
		change(&v)
		err = f.table.objects.Nodes.Put(uint32(n), v)
	}
	if err != nil {
		return &OpError{Op: op, Err: fmt.Errorf("node %d: %w", n, err)}
	}
	return nil
}

// Stats returns the counters; of a closed forwarder, only what the last sweep found.
func (f *Forwarder) Stats() Stats {
	var s Stats
	if c, err := f.table.counters(); err == nil {
		s = Stats{
			Forwarded: c.Forwarded, Assigned: c.Assigned, Errors: c.Errors, Fragments: c.Fragments,
			NoNode: c.NoNode, Loop: c.Loop, Full: c.Full,
			Diverted: c.Diverted, Unread: c.Unread, Crowded: c.Crowded, Split: c.Split, Incomplete: f.incomplete.Load(),
			Secondary: c.Secondary, Untold: c.Untold, Refused: c.RefusedNew, Degraded: c.RefusedEstablished,
		}
	}
	o := f.table.objects
	s.Capacity = uint64(o.Slots4.MaxEntries()) + uint64(o.Slots6.MaxEntries())
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.swept {
		s.Flows += c.live
		s.Fresh += c.fresh
		s.Dying += c.dying
		s.Pressure = max(s.Pressure, c.pressure())
	}
	return s
}

// Close ends the forwarder. Without Config.PinPath everything is detached; with it, the programs go on forwarding by the
// pinned tables.
func (f *Forwarder) Close() error {
	f.mu.Lock()
	if f.closed {
		f.mu.Unlock()
		return nil
	}
	f.closed = true
	f.mu.Unlock()
	var errs []error
	for _, p := range f.points {
		if p.attached != nil {
			errs = append(errs, p.attached.Close())
		}
	}
	if f.tap != nil {
		// The programs may stay; nobody reads for them.
		errs = append(errs, f.table.setTap(0), f.tap.close())
	}
	if f.Flows != nil {
		errs = append(errs, f.table.close())
	}
	f.handles.Lock()
	defer f.handles.Unlock()
	if f.nl != nil {
		f.nl.Close()
	}
	if f.namespace.IsOpen() {
		errs = append(errs, f.namespace.Close())
	}
	if err := errors.Join(errs...); err != nil {
		return &OpError{Op: "close", Err: err}
	}
	return nil
}

// withHandles calls use, unless the forwarder is closed, and reports whether it has.
func (f *Forwarder) withHandles(use func()) bool {
	f.handles.RLock()
	defer f.handles.RUnlock()
	f.mu.Lock()
	closed := f.closed
	f.mu.Unlock()
	if !closed {
		use()
	}
	return !closed
}

// Remove unpins what Config.PinPath keeps and closes the forwarder: nothing is left in the kernel.
func (f *Forwarder) Remove() error {
	var errs []error
	f.mu.Lock()
	if !f.closed && f.config.PinPath != "" {
		for _, p := range f.points {
			errs = append(errs, ignoreMissing(p.attached.Unpin()))
		}
		for _, m := range f.table.objects.pinned() {
			errs = append(errs, m.Unpin())
		}
		errs = append(errs, f.removeOthers(), ignoreMissing(os.Remove(filepath.Join(f.config.PinPath, namesFile))), ignoreMissing(os.Remove(f.config.PinPath)))
	}
	f.mu.Unlock()
	errs = append(errs, f.Close())
	if err := errors.Join(errs...); err != nil {
		return &OpError{Op: "remove", Err: err}
	}
	return nil
}

// removeOthers removes links of interfaces that an earlier configuration named.
func (f *Forwarder) removeOthers() error {
	old, err := filepath.Glob(filepath.Join(f.config.PinPath, "link_*"))
	if err != nil {
		return err
	}
	var errs []error
	for _, path := range old {
		errs = append(errs, ignoreMissing(os.Remove(path)))
	}
	return errors.Join(errs...)
}

func ignoreMissing(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}
