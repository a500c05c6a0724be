// SPDX-License-Identifier: Apache-2.0

package reqsk

import (
	"errors"
	"fmt"
	"os"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// load puts the programs into the kernel, and does without the second where the kernel has no BPF tracepoints, or a sandbox forbids them.
func (in *Injector) load() error {
	if _, err := os.Stat("/sys/kernel/btf/vmlinux"); err != nil {
		return fmt.Errorf("%w: no BTF: %w", ErrUnsupported, err)
	}
	if err := haveKfunc(); err != nil {
		return err
	}
	spec, err := loadReqsk()
	if err != nil {
		return err
	}
	if err := spec.LoadAndAssign(&in.objects.reqskMaps, nil); err != nil {
		return err
	}
	replace := &ebpf.CollectionOptions{MapReplacements: map[string]*ebpf.Map{
		"rehome_lanes": in.objects.RehomeLanes, "rehome_current": in.objects.RehomeCurrent,
	}}
	var ingress struct {
		Program *ebpf.Program `ebpf:"rehome_reqsk"`
	}
	if err := spec.LoadAndAssign(&ingress, replace); err != nil {
		return err
	}
	in.objects.RehomeReqsk = ingress.Program
	if err := in.watch(spec, replace); err != nil && in.config.Logger != nil {
		in.config.Logger.Warn("reqsk: the outcome of an injection is told by looking for the socket only", "err", err)
	}
	size := maxLanes * slotSize
	if page := os.Getpagesize(); size%page != 0 {
		size += page - size%page
	}
	in.slots, err = unix.Mmap(in.objects.RehomeLanes.FD(), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map the lanes: %w", err)
	}
	return nil
}

// watch attaches the program that sees outcomes.
func (in *Injector) watch(spec *ebpf.CollectionSpec, o *ebpf.CollectionOptions) error {
	var outcome struct {
		Program *ebpf.Program `ebpf:"rehome_outcome"`
	}
	if err := spec.LoadAndAssign(&outcome, o); err != nil {
		return err
	}
	in.objects.RehomeOutcome = outcome.Program
	l, err := link.AttachTracing(link.TracingOptions{Program: outcome.Program})
	if err != nil {
		return fmt.Errorf("attach to inet_sock_set_state: %w", err)
	}
	in.links = append(in.links, l)
	in.certain = true
	return nil
}

func explain(err error) error {
	var refused *ebpf.VerifierError
	switch {
	case errors.Is(err, ErrUnsupported), errors.Is(err, ErrPermission):
		return err
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES) && !errors.As(err, &refused):
		return fmt.Errorf("%w: %w", ErrPermission, err)
	case errors.Is(err, ebpf.ErrNotSupported):
		return fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	return err
}
