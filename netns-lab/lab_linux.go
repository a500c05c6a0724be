// SPDX-License-Identifier: Apache-2.0

package netnslab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
)

// Lab is a standing lab. It is made by Build or Reopen and ended by Close or Release.
type Lab struct {
	topo  Topology
	hosts []*Host // in the topology's order
	sw    *Host

	mu       sync.Mutex
	elements map[string]*Element // by host
	done     bool
}

// Build makes the lab that topo describes, and returns when packets can pass between all hosts. It wants root. If anything fails, or ctx ends, what was made is undone.
// ErrExists means that a lab of that name stands, perhaps left by a process that died: Down removes it.
func Build(ctx context.Context, topo Topology) (*Lab, error) {
	if topo.MTU == 0 {
		topo.MTU = DefaultMTU
	}
	fail := func(err error) (*Lab, error) { return nil, &OpError{Op: "build", Lab: topo.Name, Err: err} }
	if err := topo.Validate(); err != nil {
		return fail(err)
	}
	if err := createState(state{Version: stateVersion, Topology: topo}); err != nil {
		return fail(err)
	}
	l := &Lab{topo: topo, elements: make(map[string]*Element)}
	if err := l.build(ctx); err != nil {
		return fail(errors.Join(err, l.Close()))
	}
	return l, nil
}

func (l *Lab) build(ctx context.Context) error {
	var err error
	if l.sw, err = l.createHost(HostSpec{Name: SwitchName}); err != nil {
		return err
	}
	if err := l.sw.setUpSwitch(l.topo.MTU); err != nil {
		return &OpError{Op: "build", Lab: l.topo.Name, Host: SwitchName, Err: err}
	}
	for i, spec := range l.topo.Hosts {
		if err := ctx.Err(); err != nil {
			return err
		}
		h, err := l.createHost(spec)
		if err != nil {
			return err
		}
		l.hosts = append(l.hosts, h)
		if err := h.setUp(l.topo, i); err != nil {
			return &OpError{Op: "build", Lab: l.topo.Name, Host: spec.Name, Err: err}
		}
	}
	ports := make([]string, 0, len(l.hosts))
	for _, h := range l.hosts {
		if err := h.awaitUp(ctx); err != nil {
			return &OpError{Op: "build", Lab: l.topo.Name, Host: h.Name(), Err: err}
		}
		ports = append(ports, portName(h.Name()))
	}
	if err := l.sw.awaitForwarding(ctx, ports...); err != nil {
		return &OpError{Op: "build", Lab: l.topo.Name, Host: SwitchName, Err: err}
	}
	for _, im := range l.topo.Impairments {
		if _, err := l.Impair(ctx, im.Host, im.Up, im.Down); err != nil {
			return err
		}
	}
	return nil
}

func (l *Lab) createHost(spec HostSpec) (*Host, error) {
	ns, err := createNamespace(namespaceName(l.topo.Name, spec.Name))
	if err != nil {
		return nil, err
	}
	return &Host{lab: l, spec: spec, ns: ns}, nil
}

// Reopen returns a lab that stands, built by this or another process. Impairment elements live in the process that inserted them and are not seen.
func Reopen(name string) (*Lab, error) {
	s, err := readState(name)
	if err != nil {
		return nil, &OpError{Op: "reopen", Lab: name, Err: err}
	}
	l := &Lab{topo: s.Topology, elements: make(map[string]*Element)}
	open := func(spec HostSpec) (*Host, error) {
		ns, err := openNamespace(namespaceName(name, spec.Name))
		return &Host{lab: l, spec: spec, ns: ns}, err
	}
	if l.sw, err = open(HostSpec{Name: SwitchName}); err != nil {
		return nil, &OpError{Op: "reopen", Lab: name, Host: SwitchName, Err: err}
	}
	for _, spec := range s.Topology.Hosts {
		h, err := open(spec)
		if err != nil {
			return nil, errors.Join(&OpError{Op: "reopen", Lab: name, Host: spec.Name, Err: err}, l.closeNamespaces())
		}
		l.hosts = append(l.hosts, h)
	}
	return l, nil
}

// Topology returns what the lab was built from.
func (l *Lab) Topology() Topology { return l.topo }

// Host returns the host of that name; SwitchName is the switch's. ErrNotFound if there is none.
func (l *Lab) Host(name string) (*Host, error) {
	if name == SwitchName {
		return l.sw, nil
	}
	i := slices.IndexFunc(l.hosts, func(h *Host) bool { return h.spec.Name == name })
	if i < 0 {
		return nil, &OpError{Op: "find", Lab: l.topo.Name, Host: name, Err: ErrNotFound}
	}
	return l.hosts[i], nil
}

// Hosts returns all hosts but the switch, in the topology's order.
func (l *Lab) Hosts() []*Host { return slices.Clone(l.hosts) }

// Close takes the lab down, whoever built it: its elements, the processes on record, the namespaces with all links in them, the state. Closing twice is no error.
// Connections that somebody still holds keep their namespace alive without a name until they are closed.
func (l *Lab) Close() error {
	if !l.end() {
		return nil
	}
	err := errors.Join(l.closeElements(), l.closeNamespaces(), Down(l.topo.Name))
	if errors.Is(err, ErrNotFound) { // taken down by another process
		return nil
	}
	return err
}

// Release lets go of the lab and leaves it standing: for `rehome lab up`. Impairment elements are taken out, since they live in this process;
// their links become direct.
func (l *Lab) Release() error {
	if !l.end() {
		return nil
	}
	return errors.Join(l.closeElements(), l.closeNamespaces())
}

// end reports whether it is the first call of Close or Release.
func (l *Lab) end() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	was := l.done
	l.done = true
	return !was
}

func (l *Lab) closeElements() error {
	l.mu.Lock()
	elements := make([]*Element, 0, len(l.elements))
	for _, e := range l.elements {
		elements = append(elements, e)
	}
	l.mu.Unlock()
	var errs []error
	for _, e := range elements {
		errs = append(errs, e.Close())
	}
	return errors.Join(errs...)
}

func (l *Lab) closeNamespaces() error {
	var errs []error
	for _, h := range append(slices.Clone(l.hosts), l.sw) {
		if h != nil {
			errs = append(errs, h.ns.close())
		}
	}
	return errors.Join(errs...)
}

// record notes a process that is to end with the lab.
func (l *Lab) record(p process) error {
	return updateState(l.topo.Name, func(s *state) { s.Processes = append(s.Processes, p) })
}

// forget strikes a process that has ended. The lab may be gone by then.
func (l *Lab) forget(p process) error {
	err := updateState(l.topo.Name, func(s *state) {
		s.Processes = slices.DeleteFunc(s.Processes, func(q process) bool { return q.PID == p.PID && q.Started == p.Started })
	})
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	return err
}

// Down takes down the lab of that name, also one whose building or owner died half-way: the processes on record, and those that are in its
// namespaces by other ways, end (SIGTERM, then SIGKILL), the namespaces and all links in them go, then the state. ErrNotFound if there is nothing of that name.
func Down(name string) error {
	fail := func(err error) error { return &OpError{Op: "take down", Lab: name, Err: err} }
	if err := validLabName(name); err != nil {
		return fail(err)
	}
	s, err := readState(name)
	known := !errors.Is(err, ErrNotFound)
	// With an unreadable state the namespaces can still be found by name; its processes cannot.
	var errs []error
	if err != nil && known {
		errs = append(errs, err)
	}
	for _, p := range s.Processes {
		errs = append(errs, p.stop())
	}
	found, err := labNamespaces(name)
	errs = append(errs, err)
	for _, ns := range found {
		// A whole process that has moved is not on record where it is now.
		list, err := residents(ns)
		errs = append(errs, err)
		for _, p := range list {
			errs = append(errs, p.stop())
		}
		errs = append(errs, removeNamespace(ns))
	}
	errs = append(errs, removeState(name))
	if err := errors.Join(errs...); err != nil {
		return fail(err)
	}
	if !known && len(found) == 0 {
		return fail(ErrNotFound)
	}
	return nil
}

// labNamespaces returns the names of the namespaces that belong to a lab. Host names have no hyphen, so no other lab's match.
func labNamespaces(lab string) ([]string, error) {
	entries, err := os.ReadDir(namespaceDir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("list namespaces: %w", err)
	}
	var names []string
	for _, e := range entries {
		host, ok := strings.CutPrefix(e.Name(), namespaceName(lab, ""))
		if ok && !strings.Contains(host, "-") {
			names = append(names, e.Name())
		}
	}
	return names, nil
}
