// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	netnslab "github.com/rehome-net/rehome/netns-lab"
)

// bpfTime returns how long the BPF programs at a host's interface, tcx and XDP, have run while statistics were on. It does not contain
// what the kernel does after them, such as sending a redirected packet.
func bpfTime(h *netnslab.Host) (time.Duration, error) {
	ids, err := programsAt(h)
	if err != nil {
		return 0, fmt.Errorf("BPF programs of %s: %w", h.Name(), err)
	}
	var total time.Duration
	for _, id := range ids {
		p, err := ebpf.NewProgramFromID(id)
		if err != nil {
			return 0, fmt.Errorf("BPF program %d: %w", id, err)
		}
		stats, err := p.Stats()
		if err := errors.Join(err, p.Close()); err != nil {
			return 0, fmt.Errorf("BPF program %d: %w", id, err)
		}
		total += stats.Runtime
	}
	return total, nil
}

// programsAt lists the programs at a host's interface.
func programsAt(h *netnslab.Host) ([]ebpf.ProgramID, error) {
	var ids []ebpf.ProgramID
	err := h.Do(func() error {
		dev, err := net.InterfaceByName(netnslab.Interface)
		if err != nil {
			return err
		}
		for _, at := range []ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress} {
			r, err := link.QueryPrograms(link.QueryOptions{Target: dev.Index, Attach: at})
			if errors.Is(err, ebpf.ErrNotSupported) {
				continue // a kernel before 6.6
			}
			if err != nil {
				return err
			}
			for _, p := range r.Programs {
				ids = append(ids, p.ID)
			}
		}
		l, err := netlink.LinkByIndex(dev.Index)
		if err != nil {
			return err
		}
		if x := l.Attrs().Xdp; x != nil && x.Attached {
			ids = append(ids, ebpf.ProgramID(x.ProgId))
		}
		return nil
	})
	return ids, err
}
