// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// hook is one place a program is attached to.
type hook struct {
	ifindex int
	name    string // of the interface
	attach  ebpf.AttachType
	program *ebpf.Program
	pin     string // path of the pinned link; empty: not pinned
}

// attach puts the program first at its hook: a program in front of it that returns TC_ACT_OK would silently end the
// chain. What is returned detaches on Close, unless it is pinned.
func (h *hook) attachTo(nl *netlink.Handle) (io.Closer, error) {
	if h.pin != "" {
		old, err := link.LoadPinnedLink(h.pin, nil)
		switch {
		case err == nil:
			if err := old.Update(h.program); err == nil {
				return old, nil
			}
			// Its interface is gone, or an older version made it.
			if err := errors.Join(old.Unpin(), old.Close()); err != nil {
				return nil, fmt.Errorf("replace %s: %w", h.pin, err)
			}
		case !errors.Is(err, os.ErrNotExist):
			return nil, fmt.Errorf("load %s: %w", h.pin, err)
		}
	}
	if err := h.vacant(); err != nil {
		return nil, err
	}
	l, err := link.AttachTCX(link.TCXOptions{
		Interface: h.ifindex, Program: h.program, Attach: h.attach, Anchor: link.Head(),
	})
	if errors.Is(err, ebpf.ErrNotSupported) {
		return h.attachClsact(nl)
	}
	if err != nil {
		return nil, fmt.Errorf("attach to %s: %w", h.name, err)
	}
	if h.pin != "" {
		if err := l.Pin(h.pin); err != nil {
			return nil, errors.Join(fmt.Errorf("pin %s: %w", h.pin, err), l.Close())
		}
	}
	return l, nil
}

// vacant looks for another gate at the same hook: two would hold the same packets from one another.
func (h *hook) vacant() error {
	present, err := link.QueryPrograms(link.QueryOptions{Target: h.ifindex, Attach: h.attach})
	if err != nil {
		return nil // below 6.6: the qdisc's filters are looked at there
	}
	ours, err := h.program.Info()
	if err != nil {
		return err
	}
	for _, p := range present.Programs {
		other, err := ebpf.NewProgramFromID(p.ID)
		if err != nil {
			continue // gone meanwhile
		}
		info, err := other.Info()
		_ = other.Close()
		if err == nil && info.Name == ours.Name {
			return fmt.Errorf("%w: %s, program %d", ErrAttached, h.name, p.ID)
		}
	}
	return nil
}

// filterPriority puts the gate's filter before the usual ones (the kernel counts down from 0xc000).
const filterPriority = 1

// clsact is an attachment on kernels without tcx. It stays with the interface, not with the process.
type clsact struct {
	nl     *netlink.Handle
	filter *netlink.BpfFilter
	keep   bool
}

func (h *hook) attachClsact(nl *netlink.Handle) (io.Closer, error) {
	qdisc := &netlink.GenericQdisc{
		QdiscAttrs: netlink.QdiscAttrs{
			LinkIndex: h.ifindex, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
		},
		QdiscType: "clsact",
	}
	if err := nl.QdiscAdd(qdisc); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("add clsact to %s: %w", h.name, err)
	}
	parent, direction := uint32(netlink.HANDLE_MIN_INGRESS), "ingress"
	if h.attach == ebpf.AttachTCXEgress {
		parent, direction = netlink.HANDLE_MIN_EGRESS, "egress"
	}
	info, err := h.program.Info()
	if err != nil {
		return nil, err
	}
	filter := &netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: h.ifindex, Parent: parent, Handle: 1, Protocol: unix.ETH_P_ALL, Priority: filterPriority,
		},
		Fd: h.program.FD(), Name: info.Name, DirectAction: true,
	}
	present, err := nl.FilterList(&netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: h.ifindex}}, parent)
	if err != nil {
		return nil, fmt.Errorf("list filters of %s: %w", h.name, err)
	}
	for _, p := range present {
		if b, ok := p.(*netlink.BpfFilter); ok && b.Name == filter.Name && h.pin == "" {
			return nil, fmt.Errorf("%w: %s, tc filter of priority %d (an agent that was killed leaves it below Linux 6.6: tc filter del dev %s %s)",
				ErrAttached, h.name, b.Priority, h.name, direction)
		}
	}
	if err := nl.FilterReplace(filter); err != nil {
		return nil, fmt.Errorf("add filter to %s: %w", h.name, err)
	}
	return &clsact{nl: nl, filter: filter, keep: h.pin != ""}, nil
}

// Close leaves the clsact qdisc: others may use it, and empty it costs nothing.
func (c *clsact) Close() error {
	if c.keep {
		return nil
	}
	return c.Unpin()
}

// Unpin removes the filter for good.
func (c *clsact) Unpin() error {
	c.keep = false
	err := c.nl.FilterDel(c.filter)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EINVAL) {
		return nil // with its interface
	}
	return err
}

// pinOf names the pinned link of one hook.
func pinOf(dir, ifname string, at ebpf.AttachType) string {
	if dir == "" {
		return ""
	}
	if at == ebpf.AttachTCXEgress {
		return filepath.Join(dir, "link_"+ifname+"_out")
	}
	return filepath.Join(dir, "link_"+ifname+"_in")
}
