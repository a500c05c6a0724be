// SPDX-License-Identifier: Apache-2.0

package netnslab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Element is an impairment element between a host and the switch, made by Lab.Impair:
//
//	host eth0 ── p-<host> ─ i-<host> ─ n-<host> ═ Element ═ f-<host> ─ br0
//	  (veth)      (veth)    (bridge)    (tap)     (process)    (tap)   (the switch)
//
// It carries frames of the link's MTU: super-packets are cut into segments on the way in, as on a real wire. It runs in two threads of this process, one
// for each direction. While the process keeps all of its GOMAXPROCS processors busy in Go code, frames leave late: Stats says how late.
type Element struct {
	lab       *Lab
	host      string
	near, far *tap
	up, down  *direction
	stop      int  // eventfd, owned
	inserted  bool // the small bridge is this element's to remove
	running   sync.WaitGroup

	mu     sync.Mutex
	closed bool
	errs   []error // of the two directions
}

// Impair inserts an element between the host and the switch, or changes the one that is there. up is applied to what the host sends, down to
// what it receives. Packets under way at the moment of insertion may be lost: insert elements before the traffic. A host has one element at a time,
// of one process: a second process gets EBUSY.
func (l *Lab) Impair(ctx context.Context, host string, up, down Impairment) (*Element, error) {
	fail := func(err error) (*Element, error) {
		return nil, &OpError{Op: "impair", Lab: l.topo.Name, Host: host, Err: err}
	}
	if err := errors.Join(up.Validate(), down.Validate()); err != nil {
		return fail(err)
	}
	if _, err := l.Host(host); err != nil || host == SwitchName {
		return fail(ErrNotFound)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.done {
		return fail(ErrClosed)
	}
	if e := l.elements[host]; e != nil {
		return e, e.Set(up, down)
	}
	e, err := newElement(ctx, l, host, up, down)
	if err != nil {
		return fail(err)
	}
	l.elements[host] = e
	return e, nil
}

func newElement(ctx context.Context, l *Lab, host string, up, down Impairment) (_ *Element, err error) {
	e := &Element{lab: l, host: host, stop: -1}
	defer func() {
		if err != nil {
			err = errors.Join(err, e.free())
		}
	}()
	if e.stop, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	err = l.sw.Do(func() (err error) {
		if e.near, err = openTap("n-" + host); err != nil {
			return err
		}
		e.far, err = openTap("f-" + host)
		return err
	})
	if err != nil {
		return nil, err
	}
	if e.up, err = newDirection(e.near, e.far, e.stop, l.topo.MTU, up); err != nil {
		return nil, err
	}
	if e.down, err = newDirection(e.far, e.near, e.stop, l.topo.MTU, down); err != nil {
		return nil, err
	}
	if err = l.sw.netlink(e.insert); err != nil {
		return nil, err
	}
	if err = l.sw.awaitForwarding(ctx, e.far.name, e.near.name, portName(host)); err != nil {
		return nil, err
	}
	for _, d := range []*direction{e.up, e.down} {
		e.running.Go(func() {
			if err := d.run(); err != nil {
				e.mu.Lock()
				e.errs = append(e.errs, err)
				e.mu.Unlock()
			}
		})
	}
	return e, nil
}

// insert makes the small bridge and moves the host's port to it. nl is the switch's.
func (e *Element) insert(nl *netlink.Handle) error {
	inner := innerName(e.host)
	// The taps could be made, so no other process has an element here; a bridge is left from one that died.
	if err := removeLink(nl, inner); err != nil {
		return err
	}
	if err := addBridge(nl, inner, e.lab.topo.MTU); err != nil {
		return err
	}
	e.inserted = true
	// The host's port moves first. Were the taps there before it, a frame of the host's own would come back to it through them.
	for _, port := range []string{portName(e.host), e.near.name, e.far.name} {
		bridge := inner
		if port == e.far.name {
			bridge = bridgeName
		}
		if port != portName(e.host) {
			if err := setUpTap(nl, port, e.lab.topo.MTU); err != nil {
				return err
			}
		}
		if err := plug(nl, port, bridge); err != nil {
			return err
		}
		// Between two ports there is nothing to learn, and nothing to learn wrong.
		if bridge == inner {
			if err := setLearning(nl, port, false); err != nil {
				return err
			}
		}
	}
	return nil
}

// innerName is the small bridge between a host's port and its element.
func innerName(host string) string { return "i-" + host }

// removeLink deletes a link that need not exist.
func removeLink(nl *netlink.Handle, name string) error {
	link, err := nl.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err == nil {
		err = nl.LinkDel(link)
	}
	if err != nil {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	return nil
}

func setLearning(nl *netlink.Handle, port string, on bool) error {
	link, err := nl.LinkByName(port)
	if err == nil {
		err = nl.LinkSetLearning(link, on)
	}
	if err != nil {
		return fmt.Errorf("learning of %s: %w", port, err)
	}
	return nil
}

// setUpTap brings a tap up with the element's queue.
func setUpTap(nl *netlink.Handle, name string, mtu int) error {
	link, err := nl.LinkByName(name)
	if err == nil {
		err = nl.LinkSetTxQLen(link, tapQueue)
	}
	if err == nil {
		err = nl.LinkSetMTU(link, mtu)
	}
	if err == nil {
		err = nl.LinkSetUp(link)
	}
	if err != nil {
		return fmt.Errorf("tap %s: %w", name, err)
	}
	return nil
}

// plug makes port a port of bridge, from whatever bridge it was in.
func plug(nl *netlink.Handle, port, bridge string) error {
	p, err := nl.LinkByName(port)
	if err != nil {
		return fmt.Errorf("%s: %w", port, err)
	}
	b, err := nl.LinkByName(bridge)
	if err != nil {
		return fmt.Errorf("%s: %w", bridge, err)
	}
	if err := nl.LinkSetMaster(p, b); err != nil {
		return fmt.Errorf("plug %s into %s: %w", port, bridge, err)
	}
	return nil
}

// Set changes both directions for the frames that follow.
func (e *Element) Set(up, down Impairment) error {
	if err := errors.Join(up.Validate(), down.Validate()); err != nil {
		return &OpError{Op: "impair", Lab: e.lab.topo.Name, Host: e.host, Err: err}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return &OpError{Op: "impair", Lab: e.lab.topo.Name, Host: e.host, Err: ErrClosed}
	}
	e.up.next.Store(&up)
	e.down.next.Store(&down)
	return nil
}

// Stats returns what the element did so far to what the host sent (up) and received (down).
func (e *Element) Stats() (up, down Stats) { return e.up.stats(), e.down.stats() }

// Close takes the element out; the link is direct again. Frames that wait in it are lost. It returns what made a direction fail, if any did.
func (e *Element) Close() error {
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		return nil
	}
	e.closed = true
	e.mu.Unlock()

	e.lab.mu.Lock()
	delete(e.lab.elements, e.host)
	e.lab.mu.Unlock()

	for _, d := range []*direction{e.up, e.down} {
		d.stopping.Store(true)
	}
	_, err := unix.Write(e.stop, binary.NativeEndian.AppendUint64(nil, 1))
	e.running.Wait()
	if err := errors.Join(append(e.errs, os.NewSyscallError("write", err), e.free())...); err != nil {
		return &OpError{Op: "take out the impairment of", Lab: e.lab.topo.Name, Host: e.host, Err: err}
	}
	return nil
}

// free gives back what newElement took, and makes the link direct; nothing runs any more. The far tap goes before the port comes back, so that the switch never
// sees the host at two ports.
func (e *Element) free() error {
	var errs []error
	for _, t := range []*tap{e.far, e.near} {
		if t != nil {
			errs = append(errs, t.close())
		}
	}
	if e.stop >= 0 {
		errs = append(errs, unix.Close(e.stop))
	}
	if e.inserted {
		errs = append(errs, e.lab.sw.netlink(func(nl *netlink.Handle) error {
			return errors.Join(plug(nl, portName(e.host), bridgeName), removeLink(nl, innerName(e.host)))
		}))
		// It is bounded by itself.
		errs = append(errs, e.lab.sw.awaitForwarding(context.Background(), portName(e.host)))
	}
	return errors.Join(errs...)
}
