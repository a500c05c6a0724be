// SPDX-License-Identifier: Apache-2.0

package forward

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync"

	"github.com/cilium/ebpf"

	"github.com/rehome-net/rehome/handoff/gate"
)

// MaxServices is how many services there may be, of both protocols together.
const MaxServices = 4095

// Flags of struct service and struct policy in bpf/service.h.
const (
	serviceDivert  = 1
	serviceInspect = 2
	policySegments = 1
)

// policySize is the size of struct policy; the others are where its fields are.
const (
	policySize      = 64
	policyFlags     = 8
	policyMost      = 12
	policyDiverted  = 16
	policyRead      = 20
	defaultMost     = 256
	probabilityOne  = 1<<32 - 1 // ALWAYS in bpf/service.h
	probabilityUnit = 1 << 32
)

// Handling says what user space sees of a service's packets, before their servers do. It needs Config.Divert.
type Handling struct {
	// Divert has user space choose the node of a flow: its SYN, or first datagrams, are diverted until Assign and Send. The nodes of
	// SetService mean nothing then.
	Divert bool
	// Inspect makes all new flows of the service signalling: what their clients say is diverted, for as long as they live.
	Inspect bool
	// MaxWaiting is how many of the service's frames may be on their way through user space. 0 means 256.
	MaxWaiting int
}

// Admission is how much of a service's traffic is refused (SARA S13, eq. 2). Zero: nothing.
type Admission struct {
	New         float64 // probability that a SYN, or a first datagram, is dropped
	Established float64 // probability that a datagram of a known flow is
	Segments    bool    // Established holds for the segments of TCP connections, too
}

// ServiceStats counts what happened to a service since its first flow.
type ServiceStats struct {
	Assigned  uint64 // flows that have begun, but for announced ones
	Secondary uint64 // announced flows that have begun
	Diverted  uint64 // packets sent to user space
	Crowded   uint64 // dropped: more than Handling.MaxWaiting
	Refused   uint64 // first packets that Admission has dropped
	Degraded  uint64 // packets of established flows that Admission has dropped
}

// SetService makes the forwarder give new flows to vip to the nodes, in turn; each stays there until Commit. Node 0 is
// this host, the dispatcher: such a flow is recorded with epoch 1, and its packets go on to the host's own stack. Known
// flows keep their owners when the list is replaced, and the service its Handling and Admission.
func (s *Flows) SetService(vip netip.AddrPort, nodes []gate.Node) error {
	if len(nodes) > MaxServiceNodes {
		return serviceError("set service", vip, fmt.Errorf("%d nodes, at most %d", len(nodes), MaxServiceNodes))
	}
	for _, n := range nodes {
		if n >= MaxNodes {
			return serviceError("set service", vip, fmt.Errorf("node %d: at most %d", n, MaxNodes-1))
		}
	}
	return serviceError("set service", vip, s.changeService(vip, func(v *forwardService) error {
		v.Count, v.Next, v.Nodes = uint32(len(nodes)), 0, [MaxServiceNodes]uint16{}
		for i, n := range nodes {
			v.Nodes[i] = uint16(n)
		}
		return nil
	}))
}

// SetHandling says which packets user space sees; the service need not have nodes. Known flows stay as they are.
func (s *Flows) SetHandling(vip netip.AddrPort, h Handling) error {
	if (h.Divert || h.Inspect) && !s.diverts {
		return serviceError("set handling", vip, ErrNotDiverted)
	}
	if h.MaxWaiting < 0 {
		return serviceError("set handling", vip, fmt.Errorf("MaxWaiting %d: want at least 0", h.MaxWaiting))
	}
	if h.MaxWaiting == 0 {
		h.MaxWaiting = defaultMost
	}
	return serviceError("set handling", vip, s.changeService(vip, func(v *forwardService) error {
		v.Flags = 0
		if h.Divert {
			v.Flags |= serviceDivert
		}
		if h.Inspect {
			v.Flags |= serviceInspect
		}
		return s.table.setPolicy(v.Id, policyMost, binary.NativeEndian.AppendUint32(nil, uint32(h.MaxWaiting)))
	}))
}

// SetAdmission replaces the probabilities, both in one write. They stay until they are replaced, also when the process has ended.
func (s *Flows) SetAdmission(vip netip.AddrPort, a Admission) error {
	for _, p := range []float64{a.New, a.Established} {
		if !(p >= 0 && p <= 1) {
			return serviceError("set admission", vip, fmt.Errorf("probability %v: want 0 to 1", p))
		}
	}
	return serviceError("set admission", vip, s.changeService(vip, func(v *forwardService) error {
		flags := uint32(0)
		if a.Segments {
			flags = policySegments
		}
		if err := s.table.setPolicy(v.Id, policyFlags, binary.NativeEndian.AppendUint32(nil, flags)); err != nil {
			return err
		}
		word := uint64(fixedPoint(a.Established))<<32 | uint64(fixedPoint(a.New))
		return s.table.setPolicy(v.Id, 0, binary.NativeEndian.AppendUint64(nil, word))
	}))
}

// fixedPoint is a probability in units of 2^-32.
func fixedPoint(p float64) uint32 { return uint32(min(p*probabilityUnit, probabilityOne)) }

// RemoveService ends the service. Known flows keep their owners; new ones reach this host's own stack unrecorded.
func (s *Flows) RemoveService(vip netip.AddrPort) error {
	n := &s.table.numbers
	n.mu.Lock()
	defer n.mu.Unlock()
	key := s.serviceKey(vip)
	if id, ok := n.of[key]; ok {
		if err := s.table.setPolicy(id, 0, make([]byte, policySize)); err != nil {
			return serviceError("remove service", vip, err)
		}
	}
	err := s.table.objects.Services.Delete(key)
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return serviceError("remove service", vip, err)
	}
	if id, ok := n.of[key]; ok {
		if err := s.table.objects.Meters.Delete(uint32(id)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return serviceError("remove service", vip, err)
		}
	}
	delete(n.of, key)
	return nil
}

// ServiceStats returns a service's counters; all zero for one that is not known.
func (s *Flows) ServiceStats(vip netip.AddrPort) (sum ServiceStats, err error) {
	id := s.table.numbers.find(s.serviceKey(vip))
	if id == 0 {
		return sum, nil
	}
	var each []forwardMeter
	if err := s.table.objects.Meters.Lookup(uint32(id), &each); err != nil {
		return sum, serviceError("count", vip, err)
	}
	for _, m := range each {
		sum.Assigned += m.Assigned
		sum.Secondary += m.Secondary
		sum.Diverted += m.Diverted
		sum.Crowded += m.Crowded
		sum.Refused += m.RefusedNew
		sum.Degraded += m.RefusedEstablished
	}
	return sum, nil
}

func serviceError(op string, vip netip.AddrPort, err error) error {
	if err == nil {
		return nil
	}
	return &OpError{Op: op + " " + vip.String(), Err: err}
}

func (s *Flows) serviceKey(vip netip.AddrPort) forwardServiceKey {
	a := vip.Addr().Unmap()
	k := forwardServiceKey{Proto: s.proto, Family: 6}
	k.Port = binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, vip.Port()))
	if a.Is4() {
		k.Family = 4
	}
	for i, b := 0, a.AsSlice(); len(b) > 0; i, b = i+1, b[4:] {
		k.Addr[i] = binary.NativeEndian.Uint32(b)
	}
	return k
}

// changeService reads a service, or begins one, and writes it back.
func (s *Flows) changeService(vip netip.AddrPort, change func(*forwardService) error) error {
	if !vip.IsValid() || vip.Port() == 0 {
		return errors.New("want an address and a port")
	}
	key, t := s.serviceKey(vip), s.table
	t.numbers.mu.Lock()
	defer t.numbers.mu.Unlock()
	var v forwardService
	err := t.objects.Services.Lookup(key, &v)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		v.Id, err = t.numbers.take(key)
		if err == nil {
			err = t.meter(v.Id)
		}
	}
	if err == nil {
		err = change(&v)
	}
	if err == nil {
		err = t.objects.Services.Put(key, v)
	}
	return err
}

// meter has a service counted from 0 on: its number may have been another's.
func (t *table) meter(id uint16) error {
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return err
	}
	return t.objects.Meters.Put(uint32(id), make([]forwardMeter, cpus))
}

// meterAll has those services counted that are not yet.
func (t *table) meterAll() error {
	for _, id := range t.numbers.all() {
		var each []forwardMeter
		err := t.objects.Meters.Lookup(uint32(id), &each)
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			err = t.meter(id)
		}
		if err != nil {
			return fmt.Errorf("count service %d: %w", id, err)
		}
	}
	return nil
}

// setPolicy writes part of a service's policy. Aligned parts of four or eight bytes are written as one.
func (t *table) setPolicy(id uint16, at int, b []byte) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return ErrClosed
	}
	_, err := t.policies.WriteAt(b, int64(id)*policySize+int64(at))
	return err
}

// numbers gives services their numbers, 1 to MaxServices. One that was given back is used as late as possible: flows may still
// have it.
type numbers struct {
	mu   sync.Mutex
	of   map[forwardServiceKey]uint16
	last uint16
}

// load learns what the kernel has.
func (n *numbers) load(services *ebpf.Map) error {
	n.of = make(map[forwardServiceKey]uint16)
	var key forwardServiceKey
	var v forwardService
	at := services.Iterate()
	for at.Next(&key, &v) {
		n.of[key] = v.Id
		n.last = max(n.last, v.Id)
	}
	return at.Err()
}

func (n *numbers) find(key forwardServiceKey) uint16 {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.of[key]
}

// all returns the numbers in use.
func (n *numbers) all() []uint16 {
	n.mu.Lock()
	defer n.mu.Unlock()
	all := make([]uint16, 0, len(n.of))
	for _, id := range n.of {
		all = append(all, id)
	}
	return all
}

// take is called with the lock held.
func (n *numbers) take(key forwardServiceKey) (uint16, error) {
	used := make(map[uint16]bool, len(n.of))
	for _, id := range n.of {
		used[id] = true
	}
	for range MaxServices {
		n.last = n.last%MaxServices + 1
		if !used[n.last] {
			n.of[key] = n.last
			return n.last, nil
		}
	}
	return 0, fmt.Errorf("more than %d services", MaxServices)
}
