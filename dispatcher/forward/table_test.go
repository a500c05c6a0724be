// SPDX-License-Identifier: Apache-2.0

//go:build linux

package forward

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/tcprepair"
)

// Guard words' states and verdicts, as in bpf/table.h.
const (
	guardRetired = 4
	verdictGone  = 3
)

// slot is one used slot of a table, read from its memory.
type slot struct {
	number int
	guard  uint32
	route  uint64
	flow   string // its key
}

// slots reads a table behind the kernel's back.
func (s *stand) slots(t testing.TB, v6 bool) (used []slot) {
	t.Helper()
	lines, slots, size := s.table.objects.Lines4, s.table.objects.Slots4, 32
	if v6 {
		lines, slots, size = s.table.objects.Lines6, s.table.objects.Slots6, 64
	}
	read := func(m *ebpf.Map, n int) []byte {
		memory, err := m.Memory()
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, n)
		if _, err := memory.ReadAt(b, 0); err != nil {
			t.Fatal(err)
		}
		return b
	}
	guards := read(lines, int(lines.MaxEntries())*lineSlots*4)
	values := read(slots, int(slots.MaxEntries())*size)
	for i := range len(guards) / 4 {
		guard := binary.NativeEndian.Uint32(guards[4*i:])
		if guard == 0 {
			continue
		}
		v := values[i*size:][:size]
		used = append(used, slot{
			number: i, guard: guard, route: binary.NativeEndian.Uint64(v), flow: fmt.Sprintf("%x%x", v[16:21], v[24:]), // all but the rest of its meta word
		})
	}
	return used
}

// check looks for what must never be: a flow in two places, a slot that somebody has begun to take and left.
func (s *stand) check(t testing.TB, v6 bool) (live int) {
	t.Helper()
	seen := make(map[string]slot)
	for _, u := range s.slots(t, v6) {
		verdict := byte(u.route >> 8)
		switch u.guard & 0xff {
		case guardRetired:
			if verdict < verdictDead {
				t.Errorf("retired slot %d has route %#x", u.number, u.route)
			}
			continue
		case guardLive:
		default:
			t.Errorf("slot %d is left half taken: guard %#x", u.number, u.guard)
			continue
		}
		if verdict == verdictGone {
			continue
		}
		if other, ok := seen[u.flow]; ok {
			t.Errorf("flow %s is in slots %d (route %#x) and %d (route %#x)", u.flow, other.number, other.route, u.number, u.route)
		}
		seen[u.flow] = u
		if verdict < verdictDead {
			live++
		}
	}
	return live
}

// A table takes what it is made for, refuses what has no room, never drops what it has, and frees what is forgotten.
func TestTableFull(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		s := newStand(t, Config{MaxFlows: 20000})
		if failed := fill(t, s.Flows, 20000, v6); failed > 0 {
			t.Fatalf("%d of MaxFlows flows have no room", failed)
		}
		failed := fill(t, s.Flows, 40000, v6) - 20000 // which are there already
		if failed < 10000 {
			t.Fatalf("%d of 20,000 flows beyond MaxFlows were refused", failed)
		}
		for i := range 20000 {
			if r, err := s.Route(benchFlow(i, v6)); err != nil || r.Node != node {
				t.Fatalf("flow %d: %+v, %v", i, r, err)
			}
		}
		if live := s.check(t, v6); live != 40000-failed {
			t.Errorf("%d flows live, want %d", live, 40000-failed)
		}
		// New connections are refused: the SYN is dropped and counted.
		if err := s.SetService(benchFlow(0, v6).Local, []gate.Node{0}); err != nil {
			t.Fatal(err)
		}
		var refused []tcprepair.Flow
		before := s.Stats().Full
		for i := 0; len(refused) < 100; i++ {
			f := benchFlow(100000+i, v6)
			if i == 10000 {
				t.Fatalf("%d of 10,000 SYNs refused", len(refused))
			}
			if got, _ := s.execute(t, Mode(i%2), packetOf(s.mac, f, protoTCP, syn, 0)); got == dropped {
				refused = append(refused, f)
			}
		}
		if got := s.Stats().Full - before; got != 100 {
			t.Errorf("%d refusals counted, want 100", got)
		}
		if _, err := s.Adopt(refused[0], 1, 1); !errors.Is(err, gate.ErrFull) {
			t.Errorf("Adopt without room: %v", err)
		}
		if err := s.sweep(); err != nil {
			t.Fatal(err)
		}
		if p := s.Stats().Pressure; p < 0.9 || p > 1 {
			t.Errorf("pressure %v", p)
		}
		// Free half of it, and those that were refused find room.
		gone := make([]tcprepair.Flow, 10000)
		for i := range gone {
			gone[i] = benchFlow(i, v6)
		}
		if err := s.Forget(gone...); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := s.sweep(); err != nil {
				t.Fatal(err)
			}
		}
		for _, f := range refused {
			if got, _ := s.execute(t, TCX, packetOf(s.mac, f, protoTCP, syn, 0)); got != passed {
				t.Fatalf("SYN after others were forgotten: %s", got)
			}
		}
		for i := 10000; i < 20000; i++ {
			if r, err := s.Route(benchFlow(i, v6)); err != nil || r.Node != node {
				t.Fatalf("flow %d, after others were forgotten: %+v, %v", i, r, err)
			}
		}
		s.check(t, v6)
	}
}

// The default size: all of a million flows find room, in no more memory than promised.
func TestMillion(t *testing.T) {
	if testing.Short() {
		t.Skip("fills two million slots")
	}
	s := newStand(t, Config{MaxFlows: 1 << 20})
	for _, v6 := range []bool{false, true} {
		if failed := fill(t, s.Flows, 1<<20, v6); failed > 0 {
			t.Errorf("v6 %v: %d flows have no room", v6, failed)
		}
	}
	if bytes := s.memory(t); bytes > 128<<20 {
		t.Errorf("%d bytes of kernel memory, %.1f for each of 2^20 flows", bytes, float64(bytes)/(1<<20))
	}
	if err := s.sweep(); err != nil {
		t.Fatal(err)
	}
	if got := s.Stats(); got.Flows != 2<<20 || got.Fresh != 0 || got.Dying != 0 {
		t.Errorf("%+v: want 2^21 flows", got)
	}
}

// memory is what the kernel charges for the maps.
func (f *Forwarder) memory(t testing.TB) (sum uint64) {
	t.Helper()
	for _, m := range append(f.table.objects.pinned(), f.table.objects.Operations) {
		info, err := m.Info()
		if err != nil {
			t.Fatal(err)
		}
		bytes, ok := info.Memlock()
		if !ok {
			t.Skip("the kernel does not tell")
		}
		sum += bytes
	}
	return sum
}

// What ends a flow, in the order of the sweeps: marked, gone, free.
func TestSweep(t *testing.T) {
	s := newStand(t, Config{})
	if err := s.SetService(flow4().Local, []gate.Node{node}); err != nil {
		t.Fatal(err)
	}
	if err := s.UDP().SetService(flow4().Local, []gate.Node{node}); err != nil {
		t.Fatal(err)
	}
	flows := make([]tcprepair.Flow, 5)
	for i := range flows {
		flows[i] = tcprepair.NewFlow(flow4().Local, netip.AddrPortFrom(flow4().Remote.Addr(), uint16(5000+i)))
	}
	for _, p := range []struct {
		flow         int
		proto, flags byte
	}{{0, protoTCP, syn}, {1, protoTCP, syn}, {1, protoTCP, ack}, {2, protoTCP, syn}, {2, protoTCP, ack | fin}, {3, protoTCP, syn}, {3, protoTCP, rst}, {4, protoUDP, 0}} {
		if got, _ := s.execute(t, TCX, packetOf(s.mac, flows[p.flow], p.proto, p.flags, 0)); got != redirected {
			t.Fatalf("%+v: %s", p, got)
		}
	}
	never := uint32(1 << 30)
	for _, step := range []struct {
		name string
		timeouts
		live, fresh, dying, freed uint64
	}{
		{"nothing is idle", timeouts{never, never, never, never}, 5, 1, 0, 0},
		{"handshakes", timeouts{never, never, 0, never}, 4, 0, 1, 0},
		{"closing", timeouts{never, 0, never, never}, 2, 0, 3, 0},
		{"datagrams", timeouts{never, never, never, 0}, 1, 0, 3, 1},
		{"all", timeouts{0, never, never, never}, 0, 0, 2, 2},
		{"and out", timeouts{never, never, never, never}, 0, 0, 1, 1},
		{"and out", timeouts{never, never, never, never}, 0, 0, 0, 1},
	} {
		c, err := s.table.sweep(4, step.timeouts)
		if err != nil || c.live != step.live || c.fresh != step.fresh || c.dying != step.dying || c.freed != step.freed {
			t.Errorf("%s: %+v, %v; want %d live, %d fresh, %d dying, %d freed", step.name, c, err, step.live, step.fresh, step.dying, step.freed)
		}
	}
	if left := s.slots(t, false); len(left) != 0 {
		t.Errorf("left: %+v", left)
	}
}

// Between the marks a flow may come back, and after them it is a new one.
func TestRevival(t *testing.T) {
	s := newStand(t, Config{})
	if err := s.SetService(flow6().Local, []gate.Node{node}); err != nil {
		t.Fatal(err)
	}
	first := packetOf(s.mac, flow6(), protoTCP, syn, 0)
	for sweeps := range 4 {
		if _, err := s.Adopt(flow6(), 5, 1); err != nil {
			t.Fatal(err)
		}
		if err := s.Forget(flow6()); err != nil {
			t.Fatal(err)
		}
		for range sweeps {
			if err := s.sweep(); err != nil {
				t.Fatal(err)
			}
		}
		if got, _ := s.execute(t, TCX, first); got != redirected {
			t.Errorf("SYN %d sweeps after Forget: %s", sweeps, got)
		}
		if r, err := s.Route(flow6()); err != nil || r.Epoch != 1 || r.Node != node {
			t.Errorf("%d sweeps: %+v, %v", sweeps, r, err)
		}
		s.check(t, true)
		if err := s.Forget(flow6()); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if err := s.sweep(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if left := s.slots(t, true); len(left) != 0 {
		t.Errorf("left: %+v", left)
	}
}

// TestConcurrent has packets, operations and sweeps work on a crowded table at once. Each worker has flows of its own, of
// which it knows exactly what must hold; and all of them begin the same flows at the same time, of which there must be one.
func TestConcurrent(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		s := newStand(t, Config{MaxFlows: 400})
		if err := s.SetService(benchFlow(0, v6).Local, []gate.Node{node}); err != nil {
			t.Fatal(err)
		}
		const workers, own, shared, rounds = 4, 60, 16, 4000
		stop, index := make(chan struct{}), uint32(s.host.index(t))
		var sweeper, busy sync.WaitGroup
		sweeper.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := s.sweep(); err != nil {
					t.Error(err)
					return
				}
			}
		})
		for w := range workers {
			busy.Go(func() {
				err := s.host.try(func() error {
					random := rand.New(rand.NewPCG(uint64(w), 7))
					epochs := make(map[int]uint32) // of the own flows; 0: unknown
					send := func(i int, flags byte) (verdict, error) {
						options := &ebpf.RunOptions{
							Data: packetOf(s.mac, benchFlow(i, v6), protoTCP, flags, 0), DataOut: make([]byte, 300), Context: sk{Ifindex: index},
						}
						code, err := s.table.objects.RehomeForward.Run(options)
						return verdictOf(TCX, code), err
					}
					for range rounds {
						if random.IntN(4) == 0 {
							i := 10000 + random.IntN(shared)
							if _, err := send(i, syn); err != nil {
								return err
							}
							if random.IntN(3) == 0 {
								if err := s.Forget(benchFlow(i, v6)); err != nil {
									return err
								}
							}
							continue
						}
						i := w*own + random.IntN(own)
						f := benchFlow(i, v6)
						epoch := epochs[i]
						switch random.IntN(5) {
						case 0:
							got, err := send(i, syn)
							if err != nil {
								return err
							}
							// A refusal is right in a full table only.
							if got == redirected {
								epochs[i] = 1
								got, err = send(i, ack)
							}
							if err != nil || got != redirected {
								return errors.Join(fmt.Errorf("flow %d at epoch %d: SYN, ACK: %s", i, epoch, got), err)
							}
						case 1, 2:
							got, err := send(i, ack)
							if err != nil || (got == redirected) != (epoch > 0) {
								return errors.Join(fmt.Errorf("flow %d at epoch %d: packet: %s", i, epoch, got), err)
							}
						case 3:
							r, err := s.Commit(f, epoch, node)
							if epoch == 0 && !errors.Is(err, gate.ErrNoFlow) || epoch > 0 && (err != nil || r.Epoch != epoch+1) {
								return errors.Join(fmt.Errorf("flow %d at epoch %d: commit: %+v", i, epoch, r), err)
							}
							if epoch > 0 {
								epochs[i]++
							}
						case 4:
							if err := s.Forget(f); err != nil {
								return err
							}
							epochs[i] = 0
						}
					}
					return nil
				})
				if err != nil {
					t.Errorf("worker %d: %v", w, err)
				}
			})
		}
		busy.Wait()
		close(stop)
		sweeper.Wait()
		s.check(t, v6)
		t.Logf("v6 %v: %+v", v6, s.Stats())
	}
}

func TestOperationLayout(t *testing.T) {
	if n := binary.Size(forwardOperation{}); n != operationSize {
		t.Errorf("struct operation has %d bytes", n)
	}
	for _, f := range []tcprepair.Flow{flow4(), flow6()} {
		o := operation{code: forwardCodeOP_COMMIT, epoch: 5, node: 7, proto: protoUDP, flow: f}
		b := make([]byte, operationSize)
		o.encode(b)
		var there forwardOperation
		if _, err := binary.Decode(b, binary.LittleEndian, &there); err != nil {
			t.Fatal(err)
		}
		if there.Code != o.code || there.Epoch != 5 || there.Node != 7 || there.Key.Proto != protoUDP {
			t.Errorf("%+v", there)
		}
		key, _ := binary.Append(nil, binary.LittleEndian, there.Key)
		n := len(f.Local.Addr().AsSlice())
		if !bytes.Equal(key[:n], f.Local.Addr().AsSlice()) || !bytes.Equal(key[16:][:n], f.Remote.Addr().AsSlice()) || !bytes.Equal(key[32:36], segment(f, 0, 0)[:4]) {
			t.Errorf("key %x of %v", key, f)
		}
		there = forwardOperation{Result: -2, Route: 3<<32 | 4<<16, Idle: 100, Forwarded: 6}
		b, _ = binary.Append(nil, binary.LittleEndian, there)
		o.decode(b)
		if r := o.info(); r.Epoch != 3 || r.Node != 4 || r.Idle != 100*tick || r.Forwarded != 6 || !errors.Is(o.err(), gate.ErrNoFlow) {
			t.Errorf("%+v, %v", r, o.err())
		}
	}
}

func TestHandshakeTimeout(t *testing.T) {
	for _, c := range []struct {
		pressure float64
		want     time.Duration
	}{{0, 130 * time.Second}, {0.4, 130 * time.Second}, {0.575, 67 * time.Second}, {0.75, 4 * time.Second}, {1, 4 * time.Second}} {
		if got := handshakeTimeout(c.pressure); got < c.want-time.Second || got > c.want+time.Second {
			t.Errorf("at %v: %v, want %v", c.pressure, got, c.want)
		}
	}
}

// TestSameFlowTwice has two processors see the first packets of one flow at the same time, many times over.
func TestSameFlowTwice(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		s := newStand(t, Config{MaxFlows: 1 << 16})
		const flows, workers = 20000, 2
		if err := s.UDP().SetService(benchFlow(0, v6).Local, []gate.Node{node}); err != nil {
			t.Fatal(err)
		}
		index := uint32(s.host.index(t))
		var round atomic.Int64
		var busy sync.WaitGroup
		for range workers {
			busy.Go(func() {
				err := s.host.try(func() error {
					out := make([]byte, 300)
					for i := range flows {
						frame := packetOf(s.mac, benchFlow(i, v6), protoUDP, 0, 0)
						round.Add(1)
						start := time.Now()
						for n := 1; round.Load() < int64(i+1)*workers; n++ {
							if n%(1<<20) == 0 && time.Since(start) > 10*time.Second {
								return errors.New("the other worker has gone")
							}
						}
						options := &ebpf.RunOptions{Data: frame, DataOut: out, Context: sk{Ifindex: index}}
						code, err := s.table.objects.RehomeForward.Run(options)
						if err != nil || verdictOf(TCX, code) != redirected {
							round.Add(flows * workers)
							return errors.Join(fmt.Errorf("flow %d: %s", i, verdictOf(TCX, code)), err)
						}
					}
					return nil
				})
				if err != nil {
					t.Error(err)
				}
			})
		}
		busy.Wait()
		if live := s.check(t, v6); live != flows {
			t.Errorf("%d flows, want %d", live, flows)
		}
		retired := 0
		for _, u := range s.slots(t, v6) {
			if u.guard&0xff == guardRetired {
				retired++
			}
		}
		t.Logf("v6 %v: %d times both began", v6, retired)
	}
}
