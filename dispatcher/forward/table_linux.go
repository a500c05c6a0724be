// SPDX-License-Identifier: Apache-2.0

package forward

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"github.com/cilium/ebpf"
)

// lineSlots is LINE in bpf/table.h.
const lineSlots = 16

// maxFlows bounds MaxFlows: the kernel addresses an array of at most 4 GiB.
const maxFlows = 1 << 25

// linesFor returns how many lines hold n flows. With two lines of 16 slots to choose from, the first flow without room comes
// at a load of 0.84 or more where tables are large (0 of 20 simulated tables of 2^20 flows at 0.83); small ones scatter
// more, hence the addend.
func linesFor(n uint32) uint32 {
	const percent = 83 // of the slots
	return uint32((uint64(n)*100/percent+lineSlots-1)/lineSlots) + 1
}

// pinned are the maps that outlive the process, in the order in which they are made.
func (o *forwardMaps) pinned() []*ebpf.Map {
	return []*ebpf.Map{o.Settings, o.Lines4, o.Lines6, o.Slots4, o.Slots6, o.Nodes, o.Services, o.Ports, o.Fragments, o.Stats, o.Policies, o.Meters, o.Promises, o.Overall}
}

// load brings the tables and programs into the kernel, taking over pinned tables.
func load(config Config) (*forwardObjects, error) {
	spec, err := loadForward()
	if err != nil {
		return nil, err
	}
	lines := linesFor(config.MaxFlows)
	for name, n := range map[string]uint32{"lines4": lines, "lines6": lines, "slots4": lines * lineSlots, "slots6": lines * lineSlots} {
		spec.Maps[name].MaxEntries = n
	}
	spec.Maps["promises"].MaxEntries = config.MaxAnnounced
	options := &ebpf.CollectionOptions{}
	var found pinned
	if config.PinPath != "" {
		options.Maps.PinPath = config.PinPath
		if found, err = takeOver(spec, config.PinPath); err != nil {
			return nil, err
		}
	}
	setting := found.setting
	if setting.Seed == [10]uint32{} {
		if err := binary.Read(rand.Reader, binary.NativeEndian, &setting.Seed); err != nil {
			return nil, err
		}
	}
	setting.Version = layout
	clock, err := measureJiffies()
	if err != nil {
		config.Logger.Debug("packets are to ask the kernel for the time", "error", err)
		clock = jiffies{}
	}
	for name, value := range map[string]any{
		"seed": setting.Seed, "count4": spec.Maps["lines4"].MaxEntries, "count6": spec.Maps["lines6"].MaxEntries,
		"jiffy": clock.length, "jiffy0": clock.zero,
	} {
		if err := spec.Variables[name].Set(value); err != nil {
			return nil, fmt.Errorf("constant %s: %w", name, err)
		}
	}
	objects := new(forwardObjects)
	if err := spec.LoadAndAssign(objects, options); err != nil {
		if errors.Is(err, ebpf.ErrMapIncompatible) {
			err = fmt.Errorf("%w: files in %s: %w", ErrLayout, config.PinPath, err)
		}
		return nil, err
	}
	for i, s := range found.services {
		s.value.Id = uint16(i + 1)
		if err := objects.Services.Put(s.key, s.value); err != nil {
			return nil, errors.Join(fmt.Errorf("take over a service: %w", err), objects.Close())
		}
	}
	if setting != found.setting {
		if err := objects.Settings.Put(uint32(0), setting); err != nil {
			return nil, errors.Join(fmt.Errorf("keep the seeds: %w", err), objects.Close())
		}
	}
	return objects, nil
}

// table runs operations inside the kernel. User space never writes a flow's entry itself: only there can a change be
// atomic against the packets.
type table struct {
	objects  *forwardObjects
	memory   *ebpf.Memory // of the operations
	policies *ebpf.Memory
	overall  *ebpf.Memory
	numbers  numbers // of services

	mu     sync.Mutex
	buffer []byte
	closed bool
}

func newTable(objects *forwardObjects) (*table, error) {
	memory, err := objects.Operations.Memory()
	if err != nil {
		return nil, fmt.Errorf("map the operations: %w", err)
	}
	t := &table{objects: objects, memory: memory, buffer: make([]byte, maxOperations*operationSize)}
	if t.policies, err = objects.Policies.Memory(); err != nil {
		return nil, fmt.Errorf("map the policies: %w", err)
	}
	if t.overall, err = objects.Overall.Memory(); err != nil {
		return nil, fmt.Errorf("map the control word: %w", err)
	}
	if err := t.numbers.load(objects.Services); err != nil {
		return nil, err
	}
	return t, t.meterAll()
}

func (t *table) close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil
	}
	t.closed = true
	return t.objects.Close()
}

// run carries out the operations in order, in as few system calls as possible, and leaves the answers in them. An
// error means that a batch did not run; what an operation itself met is its result.
func (t *table) run(ops []operation) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return ErrClosed
	}
	for len(ops) > 0 {
		n := min(len(ops), maxOperations)
		b := t.buffer[:n*operationSize]
		for i := range n {
			ops[i].encode(b[i*operationSize:][:operationSize])
		}
		if _, err := t.memory.WriteAt(b, 0); err != nil {
			return err
		}
		if _, err := t.objects.RehomeOp.Run(&ebpf.RunOptions{Context: forwardBatch{Count: uint32(n)}}); err != nil {
			return fmt.Errorf("run operations in the kernel: %w", err)
		}
		if _, err := t.memory.ReadAt(b, 0); err != nil {
			return err
		}
		for i := range n {
			ops[i].decode(b[i*operationSize:][:operationSize])
		}
		ops = ops[n:]
	}
	return nil
}

// counters sums the counters of all CPUs.
func (t *table) counters() (sum forwardCounters, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return sum, ErrClosed
	}
	var each []forwardCounters
	if err := t.objects.Stats.Lookup(uint32(0), &each); err != nil {
		return sum, err
	}
	for _, c := range each {
		sum.Forwarded += c.Forwarded
		sum.Assigned += c.Assigned
		sum.NoNode += c.NoNode
		sum.Loop += c.Loop
		sum.Full += c.Full
		sum.Errors += c.Errors
		sum.Fragments += c.Fragments
		sum.Probed += c.Probed
		sum.Inserted4 += c.Inserted4
		sum.Inserted6 += c.Inserted6
		sum.Diverted += c.Diverted
		sum.Unread += c.Unread
		sum.Crowded += c.Crowded
		sum.Split += c.Split
		sum.Secondary += c.Secondary
		sum.Untold += c.Untold
		sum.RefusedNew += c.RefusedNew
		sum.RefusedEstablished += c.RefusedEstablished
	}
	return sum, nil
}
