// SPDX-License-Identifier: Apache-2.0

package forward

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
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
	return []*ebpf.Map{o.Settings, o.Lines4, o.Lines6, o.Slots4, o.Slots6, o.Nodes, o.Services, o.Ports, o.Fragments, o.Stats}
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
	options := &ebpf.CollectionOptions{}
	var seeds forwardSetting
	if config.PinPath != "" {
		options.Maps.PinPath = config.PinPath
		if seeds, err = takeOver(spec, config.PinPath); err != nil {
			return nil, err
		}
	}
	fresh := seeds == forwardSetting{}
	if fresh {
		if err := binary.Read(rand.Reader, binary.NativeEndian, &seeds.Seed); err != nil {
			return nil, err
		}
	}
	for name, value := range map[string]any{
		"seed": seeds.Seed, "count4": spec.Maps["lines4"].MaxEntries, "count6": spec.Maps["lines6"].MaxEntries,
	} {
		if err := spec.Variables[name].Set(value); err != nil {
			return nil, fmt.Errorf("constant %s: %w", name, err)
		}
	}
	objects := new(forwardObjects)
	if err := spec.LoadAndAssign(objects, options); err != nil {
		if errors.Is(err, ebpf.ErrMapIncompatible) {
			err = fmt.Errorf("%w: another version pinned it; Remove it, or remove the files in %s", err, config.PinPath)
		}
		return nil, err
	}
	if fresh {
		if err := objects.Settings.Put(uint32(0), seeds); err != nil {
			return nil, errors.Join(fmt.Errorf("keep the seeds: %w", err), objects.Close())
		}
	}
	return objects, nil
}

// takeOver has the pinned maps used, of the size they have, and returns the seeds they are hashed with: zero ones if there
// are no tables yet. Nothing is attached before the seeds are written, so tables without them are empty.
func takeOver(spec *ebpf.CollectionSpec, dir string) (seeds forwardSetting, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return seeds, fmt.Errorf("pin path: %w", err)
	}
	for name, m := range spec.Maps {
		if name == "operations" || strings.HasPrefix(name, ".rodata") {
			continue // private to the process
		}
		m.Pinning = ebpf.PinByName
		old, err := ebpf.LoadPinnedMap(filepath.Join(dir, name), nil)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return seeds, fmt.Errorf("pinned map %s: %w", name, err)
		}
		m.MaxEntries = old.MaxEntries()
		if name == "settings" {
			err = old.Lookup(uint32(0), &seeds)
		}
		if err := errors.Join(err, old.Close()); err != nil {
			return seeds, fmt.Errorf("pinned map %s: %w", name, err)
		}
	}
	for _, v := range []string{"4", "6"} {
		if spec.Maps["slots"+v].MaxEntries != spec.Maps["lines"+v].MaxEntries*lineSlots {
			return seeds, fmt.Errorf("pinned tables of IPv%s do not fit one another: remove the files in %s", v, dir)
		}
	}
	return seeds, nil
}

// table runs operations inside the kernel. User space never writes a flow's entry itself: only there can a change be
// atomic against the packets.
type table struct {
	objects *forwardObjects
	memory  *ebpf.Memory // of the operations

	mu     sync.Mutex
	buffer []byte
	closed bool
}

func newTable(objects *forwardObjects) (*table, error) {
	memory, err := objects.Operations.Memory()
	if err != nil {
		return nil, fmt.Errorf("map the operations: %w", err)
	}
	return &table{objects: objects, memory: memory, buffer: make([]byte, maxOperations*operationSize)}, nil
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
	}
	return sum, nil
}
