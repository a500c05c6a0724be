// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/tcprepair"
)

// Gate guards the interfaces of one host. Its methods are safe for concurrent use.
type Gate struct {
	config Config
	table  *table
	taps   []*tap
	hooks  []io.Closer
	nl     *netlink.Handle

	nodes sync.Mutex // a node's entry is read and written back

	// mu guards the queues and, more than that, the order of frames: whoever reads or writes a tap holds it.
	mu       sync.Mutex
	queues   map[tcprepair.Flow]*queue
	doors    map[netip.AddrPort]*queue // of services whose new connections wait
	room     room                      // of both
	overflow uint64
	lapsed   uint64
	vain     time.Time // when frames were last waited for in vain
	rests    int       // queues that are resting
	rested   sync.Cond // rests has become smaller; its lock is mu
	swept    gateSweep
	closed   bool
}

// Open loads the programs and attaches them in the network namespace of the calling thread. With Config.PinPath it goes
// on with the tables that are pinned there; holds of a former process end at their deadlines.
//
// Errors to expect: ErrPermission, ErrUnsupported, ErrAttached.
func Open(config Config) (_ *Gate, err error) {
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
	g := &Gate{config: config.withDefaults(), queues: make(map[tcprepair.Flow]*queue), doors: make(map[netip.AddrPort]*queue)}
	g.rested.L = &g.mu
	defer func() {
		if err != nil {
			_ = g.Close()
		}
	}()
	if g.nl, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	g.room.max = g.config.HoldTotal
	objects, unlisted, err := load(g.config)
	if err != nil {
		return nil, err
	}
	if g.table, err = newTable(objects); err != nil {
		return nil, errors.Join(err, objects.Close())
	}
	if unlisted {
		if err := g.table.enlist(); err != nil {
			return nil, err
		}
	}
	if err := g.forgetDoors(); err != nil {
		return nil, err
	}
	for _, name := range g.config.Interfaces {
		if err := g.guard(name); err != nil {
			return nil, fmt.Errorf("interface %s: %w", name, err)
		}
	}
	return g, nil
}

// load brings the tables and programs into the kernel, taking over pinned tables. unlisted: they are of a version without queues of keys.
func load(config Config) (_ *gateObjects, unlisted bool, _ error) {
	spec, err := loadGate()
	if err != nil {
		return nil, false, err
	}
	for _, name := range []string{"flows4", "flows6"} {
		spec.Maps[name].MaxEntries = config.MaxFlows
	}
	options := &ebpf.CollectionOptions{}
	pinned := make(map[string]bool)
	if config.PinPath != "" {
		if err := os.MkdirAll(config.PinPath, 0o700); err != nil {
			return nil, false, fmt.Errorf("pin path: %w", err)
		}
		options.Maps.PinPath = config.PinPath
		for name, m := range spec.Maps {
			if name == "operations" {
				continue // private to the process
			}
			m.Pinning = ebpf.PinByName
			if there, err := ebpf.LoadPinnedMap(filepath.Join(config.PinPath, name), nil); err == nil {
				pinned[name] = true
				m.MaxEntries = there.MaxEntries()
				_ = there.Close()
			}
		}
	}
	for keys, flows := range map[string]string{"keys4": "flows4", "keys6": "flows6"} {
		if !pinned[keys] {
			spec.Maps[keys].MaxEntries = spec.Maps[flows].MaxEntries + keysSlack
			unlisted = unlisted || pinned[flows]
		}
	}
	objects := new(gateObjects)
	if err := spec.LoadAndAssign(objects, options); err != nil {
		if errors.Is(err, ebpf.ErrMapIncompatible) {
			err = fmt.Errorf("%w: another version pinned it; Remove it, or remove the files in %s", err, config.PinPath)
		}
		return nil, false, err
	}
	return objects, unlisted, nil
}

// guard makes the interface's tap and attaches the programs. The tap comes first, so that nothing is held without one.
func (g *Gate) guard(name string) error {
	l, err := g.nl.LinkByName(name)
	if err != nil {
		return err
	}
	attrs := l.Attrs()
	if !isEthernet(attrs) {
		return fmt.Errorf("%w: link type %q has no Ethernet header", errors.ErrUnsupported, attrs.EncapType)
	}
	t, err := newTap(g.nl, attrs)
	if err != nil {
		return err
	}
	g.taps = append(g.taps, t)
	o := g.table.objects
	there := gatePort{Ifindex: uint32(t.ifindex)}
	if err := errors.Join(
		o.Ports.Put(uint32(t.ifindex), t.port),
		o.Ports.Put(uint32(attrs.Index), there),
	); err != nil {
		return fmt.Errorf("register the tap: %w", err)
	}
	for _, h := range []hook{
		{ifindex: t.ifindex, name: t.file.Name(), attach: ebpf.AttachTCXIngress, program: o.RehomeTap},
		{ifindex: attrs.Index, name: name, attach: ebpf.AttachTCXIngress, program: o.RehomeIn, pin: pinOf(g.config.PinPath, name, ebpf.AttachTCXIngress)},
		{ifindex: attrs.Index, name: name, attach: ebpf.AttachTCXEgress, program: o.RehomeOut, pin: pinOf(g.config.PinPath, name, ebpf.AttachTCXEgress)},
	} {
		attached, err := h.attachTo(g.nl)
		if err != nil {
			return err
		}
		g.hooks = append(g.hooks, attached)
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

// Close ends the gate. What was held and not released is lost, like any packet on a network. Without Config.PinPath
// everything is detached; with it, the programs go on forwarding by the pinned tables.
func (g *Gate) Close() error {
	g.mu.Lock()
	if g.closed {
		g.mu.Unlock()
		return nil
	}
	g.closed = true // whoever rests does so no more, and ends
	for g.rests > 0 {
		g.rested.Wait()
	}
	g.queues = nil
	// Closing a tap waits for its reader, which may be waiting for mu. Nobody touches a tap once closed is set.
	g.mu.Unlock()
	var errs []error
	for _, t := range g.taps {
		// Without its tap a held packet is dropped, until the hold's deadline.
		errs = append(errs,
			ignoreMissing(g.table.objects.Ports.Delete(t.port.Ifindex)),
			ignoreMissing(g.table.objects.Ports.Delete(uint32(t.ifindex))))
	}
	for _, h := range g.hooks {
		errs = append(errs, h.Close())
	}
	for _, t := range g.taps {
		errs = append(errs, t.close())
	}
	if g.table != nil {
		errs = append(errs, g.table.close())
	}
	if g.nl != nil {
		g.nl.Close()
	}
	if err := errors.Join(errs...); err != nil {
		return &OpError{Op: "close", Err: err}
	}
	return nil
}

func ignoreMissing(err error) error {
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	}
	return err
}

// Remove unpins what Config.PinPath keeps and closes the gate: nothing is left in the kernel.
func (g *Gate) Remove() error {
	var errs []error
	g.mu.Lock()
	if !g.closed && g.config.PinPath != "" {
		for _, h := range g.hooks {
			if p, ok := h.(interface{ Unpin() error }); ok {
				if err := p.Unpin(); err != nil && !errors.Is(err, os.ErrNotExist) {
					errs = append(errs, err)
				}
			}
		}
		o := g.table.objects
		for _, m := range []*ebpf.Map{o.Flows4, o.Flows6, o.Keys4, o.Keys6, o.Nodes, o.Services, o.Doors, o.Ports, o.State, o.Stats} {
			errs = append(errs, m.Unpin())
		}
		if err := os.Remove(g.config.PinPath); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	g.mu.Unlock()
	errs = append(errs, g.Close())
	if err := errors.Join(errs...); err != nil {
		return &OpError{Op: "remove", Err: err}
	}
	return nil
}

// SetNode says how a node is reached: frames leave by the interface, from MAC src to MAC dst. (SARA S23: a static table
// of nodes, no tunnel and no address translation.)
func (g *Gate) SetNode(n Node, ifindex int, dst, src net.HardwareAddr) error {
	switch {
	case n == 0 || n >= MaxNodes:
		return &OpError{Op: "set node", Err: fmt.Errorf("node %d: want 1 to %d (0 is this host)", n, MaxNodes-1)}
	case ifindex <= 0 || len(dst) != 6 || len(src) != 6:
		return &OpError{Op: "set node", Err: fmt.Errorf("node %d: want an interface and two Ethernet addresses", n)}
	}
	return g.changeNode("set node", n, func(v *gateNode) {
		v.Ifindex = uint32(ifindex)
		copy(v.Dst[:], dst)
		copy(v.Src[:], src)
	})
}

// DrainNode takes a node out of the choice for new flows, or puts it back. 0 drains this host itself.
func (g *Gate) DrainNode(n Node, drain bool) error {
	return g.changeNode("drain node", n, func(v *gateNode) {
		v.Flags = 0
		if drain {
			v.Flags = 1
		}
	})
}

func (g *Gate) changeNode(op string, n Node, change func(*gateNode)) error {
	g.nodes.Lock()
	defer g.nodes.Unlock()
	var v gateNode
	err := g.table.objects.Nodes.Lookup(uint32(n), &v)
	if err == nil {
		change(&v)
		err = g.table.objects.Nodes.Put(uint32(n), v)
	}
	if err != nil {
		return &OpError{Op: op, Err: fmt.Errorf("node %d: %w", n, err)}
	}
	return nil
}
