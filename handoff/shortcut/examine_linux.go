// SPDX-License-Identifier: Apache-2.0

package shortcut

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Gate is the name of the gate's program at the way out (handoff/gate/bpf/gate.c). It looks at what this host's sockets send and at nothing that
// is forwarded, which may pass it by.
const Gate = "rehome_out"

// Examine returns nil if frames may leave an interface by the shortcut, as far as can be seen from this side, and otherwise why not. nl is of
// the namespace of the calling thread. Programs of tcx at the way out whose names are in own are the caller's, and may be passed by.
func Examine(nl *netlink.Handle, ifindex int, own ...string) error {
	l, err := nl.LinkByIndex(ifindex)
	if err != nil {
		return fmt.Errorf("interface %d: %w", ifindex, err)
	}
	a := l.Attrs()
	switch {
	case l.Type() != "veth" || a.EncapType != "ether":
		return fmt.Errorf("%w: %s", ErrNotVeth, l.Type())
	case a.NetNsID < 0:
		return ErrSameNamespace
	case a.RawFlags&unix.IFF_UP == 0 || a.RawFlags&unix.IFF_LOWER_UP == 0:
		return ErrDown
	}
	disciplines, err := nl.QdiscList(l)
	if err != nil {
		return fmt.Errorf("list queueing disciplines: %w", err)
	}
	for _, q := range disciplines {
		// ingress has no way out; clsact has one, and what hangs there is not looked at.
		if t := q.Type(); t != "noqueue" && t != "ingress" {
			return fmt.Errorf("%w: queueing discipline %s", ErrObserved, t)
		}
	}
	return examinePrograms(ifindex, own)
}

func examinePrograms(ifindex int, own []string) error {
	present, err := link.QueryPrograms(link.QueryOptions{Target: ifindex, Attach: ebpf.AttachTCXEgress})
	if errors.Is(err, unix.EINVAL) || errors.Is(err, ebpf.ErrNotSupported) {
		return nil // a kernel without tcx has none
	}
	if err != nil {
		return fmt.Errorf("list programs: %w", err)
	}
	for _, p := range present.Programs {
		name, err := programName(p.ID)
		if errors.Is(err, unix.ENOENT) {
			continue // gone meanwhile
		}
		if err != nil {
			return fmt.Errorf("program %d: %w", p.ID, err)
		}
		if !slices.Contains(own, name) {
			return fmt.Errorf("%w: program %s", ErrObserved, name)
		}
	}
	return nil
}

func programName(id ebpf.ProgramID) (string, error) {
	p, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return "", err
	}
	info, err := p.Info()
	if err := errors.Join(err, p.Close()); err != nil {
		return "", err
	}
	return info.Name, nil
}
