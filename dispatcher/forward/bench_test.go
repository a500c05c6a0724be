// SPDX-License-Identifier: Apache-2.0

//go:build linux

package forward

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/tcprepair"
)

// benchFlow spreads 2^23 flows over client addresses and ports.
func benchFlow(i int, v6 bool) tcprepair.Flow {
	port := uint16(i&0xff)<<8 | 0x80
	hi := uint16(i >> 8)
	if v6 {
		a := netip.MustParseAddr("2001:db8::7").As16()
		binary.BigEndian.PutUint16(a[14:], hi)
		return tcprepair.NewFlow(netip.MustParseAddrPort("[2001:db8::1]:80"), netip.AddrPortFrom(netip.AddrFrom16(a), port))
	}
	a := [4]byte{192, 2, byte(hi >> 8), byte(hi)}
	return tcprepair.NewFlow(netip.MustParseAddrPort("198.51.100.1:80"), netip.AddrPortFrom(netip.AddrFrom4(a), port))
}

func fill(b testing.TB, f *Flows, flows int, v6 bool) (failed int) {
	b.Helper()
	ops := make([]operation, 0, 1<<10)
	for at := 0; at < flows; at += cap(ops) {
		ops = ops[:0]
		for i := at; i < min(at+cap(ops), flows); i++ {
			o := f.operation(forwardCodeOP_ADOPT, benchFlow(i, v6))
			o.epoch, o.node = 1, 9
			ops = append(ops, o)
		}
		if err := f.run(ops); err != nil {
			b.Fatal(err)
		}
		for i := range ops {
			if ops[i].result != 0 {
				failed++
			}
		}
	}
	return failed
}

// generator is a program that aims the frame at a random flow of benchFlow's first n, a power of two, and then calls
// target. Without a target it ends there.
func generator(b testing.TB, kind ebpf.ProgramType, n uint32, v6 bool, target *ebpf.Program) *ebpf.Program {
	b.Helper()
	// Where the last word of the client's address is, how it begins, and where the ports are.
	address, prefix, port := int16(14+12), int32(2<<8|192), int16(14+20)
	if v6 {
		address, prefix, port = 14+8+12, 0, 14+40
	}
	length := int32(port + 20)
	data, end, size := int16(76), int16(80), asm.Word
	verdict := int32(-1)
	if kind == ebpf.XDP {
		data, end = 0, 4
		verdict = 2
	}
	code := asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.FnGetPrandomU32.Call(),
		asm.And.Imm(asm.R0, int32(n-1)),
		asm.LoadMem(asm.R2, asm.R6, data, size),
		asm.LoadMem(asm.R3, asm.R6, end, size),
		asm.Mov.Reg(asm.R4, asm.R2),
		asm.Add.Imm(asm.R4, length),
		asm.JGT.Reg(asm.R4, asm.R3, "out"),
		// The run before has written its addresses into the frame.
		asm.Mov.Imm(asm.R5, 0),
		asm.StoreMem(asm.R2, 0, asm.R5, asm.Word),
		asm.StoreMem(asm.R2, 4, asm.R5, asm.Half),
		asm.Mov.Imm(asm.R5, 0x55),
		asm.StoreMem(asm.R2, 6, asm.R5, asm.Word),
		asm.StoreMem(asm.R2, 10, asm.R5, asm.Half),
		// Whole words, as the program will read them: what a load takes together from several stores, the processor
		// cannot forward, and the packets would wait for one another as they never do behind a device.
		asm.Mov.Reg(asm.R5, asm.R0),
		asm.And.Imm(asm.R5, 0xff),
		asm.Or.Imm(asm.R5, 80<<24|0x80<<8),
		asm.StoreMem(asm.R2, port, asm.R5, asm.Word),
		asm.Mov.Reg(asm.R5, asm.R0),
		asm.RSh.Imm(asm.R5, 8),
		asm.HostTo(asm.BE, asm.R5, asm.Half),
		asm.LSh.Imm(asm.R5, 16),
		asm.Or.Imm(asm.R5, prefix),
		asm.StoreMem(asm.R2, address, asm.R5, asm.Word),
	}
	if target != nil {
		calls, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.ProgramArray, KeySize: 4, ValueSize: 4, MaxEntries: 1})
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { calls.Close() })
		if err := calls.Put(uint32(0), target); err != nil {
			b.Fatal(err)
		}
		code = append(code,
			asm.Mov.Reg(asm.R1, asm.R6),
			asm.LoadMapPtr(asm.R2, calls.FD()),
			asm.Mov.Imm(asm.R3, 0),
			asm.FnTailCall.Call(),
		)
	}
	code = append(code, asm.Mov.Imm(asm.R0, verdict).WithSymbol("out"), asm.Return())
	// A tail call wants its target's attach type and flags.
	spec := &ebpf.ProgramSpec{Name: "generator", Type: kind, AttachType: ebpf.AttachTCXIngress, License: "GPL", Instructions: code}
	if kind == ebpf.XDP {
		const hasFrags = 1 << 5
		spec.AttachType, spec.Flags = ebpf.AttachXDP, hasFrags
	}
	p, err := ebpf.NewProgram(spec)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { p.Close() })
	return p
}

// plainHash is the least that a plain BPF hash of the flows would cost: a program that looks benchFlow's packets up in one,
// marks the entry as seen and redirects.
func plainHash(b testing.TB, flows int) *ebpf.Program {
	b.Helper()
	const keySize, valueSize = 16, 32
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: keySize, ValueSize: valueSize, MaxEntries: 1 << 20})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { m.Close() })
	for at := 0; at < flows; at += 1 << 10 {
		keys, values := make([][keySize]byte, 1<<10), make([][valueSize]byte, 1<<10)
		for i := range keys {
			f := benchFlow(at+i, false)
			copy(keys[i][:], f.Remote.Addr().AsSlice())
			copy(keys[i][4:], f.Local.Addr().AsSlice())
			copy(keys[i][8:], segment(f, 0, 0)[:4])
			keys[i][12] = protoTCP
		}
		if _, err := m.BatchUpdate(keys, values, nil); err != nil {
			b.Fatal(err)
		}
	}
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "plain_hash", Type: ebpf.SchedCLS, AttachType: ebpf.AttachTCXIngress, License: "GPL",
		Instructions: asm.Instructions{
			asm.LoadMem(asm.R2, asm.R1, 76, asm.Word),
			asm.LoadMem(asm.R3, asm.R1, 80, asm.Word),
			asm.Mov.Reg(asm.R4, asm.R2),
			asm.Add.Imm(asm.R4, 54),
			asm.JGT.Reg(asm.R4, asm.R3, "miss"),
			asm.LoadMem(asm.R5, asm.R2, 26, asm.Word),
			asm.StoreMem(asm.RFP, -16, asm.R5, asm.Word),
			asm.LoadMem(asm.R5, asm.R2, 30, asm.Word),
			asm.StoreMem(asm.RFP, -12, asm.R5, asm.Word),
			asm.LoadMem(asm.R5, asm.R2, 34, asm.Word),
			asm.StoreMem(asm.RFP, -8, asm.R5, asm.Word),
			asm.LoadMem(asm.R5, asm.R2, 23, asm.Byte),
			asm.StoreMem(asm.RFP, -4, asm.R5, asm.Word),
			asm.LoadMapPtr(asm.R1, m.FD()),
			asm.Mov.Reg(asm.R2, asm.RFP),
			asm.Add.Imm(asm.R2, -16),
			asm.FnMapLookupElem.Call(),
			asm.JEq.Imm(asm.R0, 0, "miss"),
			asm.LoadMem(asm.R1, asm.R0, 0, asm.DWord),
			asm.Add.Imm(asm.R1, 1),
			asm.StoreMem(asm.R0, 0, asm.R1, asm.DWord),
			asm.Mov.Imm(asm.R1, 1),
			asm.Mov.Imm(asm.R2, 0),
			asm.FnRedirect.Call(),
			asm.Return(),
			asm.Mov.Imm(asm.R0, -1).WithSymbol("miss"),
			asm.Return(),
		},
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { p.Close() })
	return p
}

// BenchmarkPacket reports, as ns/packet, the median of what the kernel measures for a packet of a random flow; the generator's own share
// is what "generator" shows, to be subtracted. "plain-hash" is for comparison. Also reported: the least of the runs, for
// machines on which others work at the same time.
func BenchmarkPacket(b *testing.B) {
	for _, v6 := range []bool{false, true} {
		for _, flows := range []int{1 << 10, 1 << 17, 1 << 20} {
			b.Run(fmt.Sprintf("v6=%v/flows=%d", v6, flows), func(b *testing.B) {
				h := network(b, 1)[0]
				f := h.forwarder(b, Config{MaxFlows: 1 << 20})
				mac := h.mac(b)
				if err := f.SetNode(9, h.index(b), net.HardwareAddr{2, 0, 0, 0, 0, 9}, mac); err != nil {
					b.Fatal(err)
				}
				if failed := fill(b, f.Flows, flows, v6); failed > 0 {
					b.Fatalf("%d flows have no room", failed)
				}
				o := f.table.objects
				// BPF_PROG_RUN is on lo, whose address is zero.
				if err := o.Ports.Put(uint32(1), forwardPort{Ifindex: 1}); err != nil {
					b.Fatal(err)
				}
				frame := packetOf(make(net.HardwareAddr, 6), benchFlow(0, v6), protoTCP, ack, 0)
				miss := append([]byte{}, frame...)
				miss[14+19] ^= 1
				if v6 {
					miss[14+39] ^= 1
				}
				type run struct {
					name    string
					kind    ebpf.ProgramType
					program *ebpf.Program
					frame   []byte
				}
				runs := []run{
					{"tcx/generator", ebpf.SchedCLS, nil, frame},
					{"tcx/hit", ebpf.SchedCLS, o.RehomeForward, frame},
					{"tcx/miss", ebpf.SchedCLS, o.RehomeForward, miss},
					{"xdp/generator", ebpf.XDP, nil, frame},
					{"xdp/hit", ebpf.XDP, o.RehomeXdp, frame},
					{"xdp/miss", ebpf.XDP, o.RehomeXdp, miss},
				}
				if !v6 {
					runs = append(runs, run{"tcx/plain-hash", ebpf.SchedCLS, plainHash(b, flows), frame})
				}
				for _, c := range runs {
					b.Run(c.name, func(b *testing.B) {
						p := generator(b, c.kind, uint32(flows), v6, c.program)
						h.do(b, func() error {
							// Each run of an XDP program begins with cold caches, because the kernel rewrites code for it, which takes
							// 20 ms: it must be long for that not to count.
							const repeat = 1 << 20
							var each []time.Duration
							before := f.Stats().Forwarded
							for b.Loop() {
								_, took, err := p.Benchmark(c.frame, repeat, nil)
								if err != nil {
									return err
								}
								each = append(each, took)
							}
							// A generator that aims beside the flows would make a fine figure. A signal makes a run begin anew, so
							// that there may be more hits than asked for.
							hits := f.Stats().Forwarded - before
							if want := uint64(len(each)) * repeat; strings.HasSuffix(c.name, "/hit") && hits < want || !strings.HasSuffix(c.name, "/hit") && hits != 0 {
								return fmt.Errorf("%d of %d packets were forwarded", hits, want)
							}
							if c.name == "tcx/plain-hash" {
								for range 1000 {
									if code, _, err := p.Benchmark(c.frame, 1, nil); err != nil || verdictOf(TCX, code) != redirected {
										return errors.Join(err, fmt.Errorf("not in the hash: %s", verdictOf(TCX, code)))
									}
								}
							}
							slices.Sort(each)
							b.ReportMetric(float64(each[len(each)/2].Nanoseconds()), "ns/packet")
							b.ReportMetric(float64(each[0].Nanoseconds()), "ns/packet-least")
							return nil
						})
					})
				}
			})
		}
	}
}

// BenchmarkAdmission reports what admission costs a packet of an established flow: the same program without it ("none"), with
// nothing to refuse ("zero"), and throwing dice for every packet ("dice"). They take turns, so that what else the machine does
// meets all alike.
func BenchmarkAdmission(b *testing.B) {
	for _, flows := range []int{1 << 10, 1 << 20} {
		b.Run(fmt.Sprintf("flows=%d", flows), func(b *testing.B) {
			h := network(b, 1)[0]
			f := h.forwarder(b, Config{MaxFlows: 1 << 20})
			if err := f.SetNode(9, h.index(b), net.HardwareAddr{2, 0, 0, 0, 0, 9}, h.mac(b)); err != nil {
				b.Fatal(err)
			}
			vip := benchFlow(0, false).Local
			if err := f.SetService(vip, []gate.Node{9}); err != nil {
				b.Fatal(err)
			}
			if failed := fill(b, f.Flows, flows, false); failed > 0 {
				b.Fatalf("%d flows have no room", failed)
			}
			o := f.table.objects
			frame := packetOf(make(net.HardwareAddr, 6), benchFlow(0, false), protoTCP, ack, 0)
			type run struct {
				name    string
				program *ebpf.Program
				set     Admission
				each    []float64
			}
			runs := []*run{
				{"none", generator(b, ebpf.SchedCLS, uint32(flows), false, without(b, o)), Admission{}, nil},
				{"zero", generator(b, ebpf.SchedCLS, uint32(flows), false, o.RehomeForward), Admission{}, nil},
				{"dice", generator(b, ebpf.SchedCLS, uint32(flows), false, o.RehomeForward), Admission{Established: 0x1p-32, Segments: true}, nil},
			}
			h.do(b, func() error {
				for b.Loop() {
					for _, r := range runs {
						if err := f.SetAdmission(vip, r.set); err != nil {
							return err
						}
						before := f.Stats()
						const repeat = 1 << 17
						_, took, err := r.program.Benchmark(frame, repeat, nil)
						if err != nil {
							return err
						}
						if after := f.Stats(); after.Forwarded+after.Degraded-before.Forwarded-before.Degraded < repeat {
							return fmt.Errorf("%s: only %d packets were forwarded", r.name, after.Forwarded-before.Forwarded)
						}
						r.each = append(r.each, float64(took.Nanoseconds()))
					}
				}
				return nil
			})
			for _, r := range runs {
				slices.Sort(r.each)
				b.ReportMetric(r.each[len(r.each)/2], r.name+"-ns")
				b.ReportMetric(r.each[0], r.name+"-least-ns")
			}
		})
	}
}

// without is the program on the same tables that never degrades a flow.
func without(b *testing.B, o *forwardObjects) *ebpf.Program {
	b.Helper()
	spec, err := loadForward()
	if err != nil {
		b.Fatal(err)
	}
	var setting forwardSetting
	if err := o.Settings.Lookup(uint32(0), &setting); err != nil {
		b.Fatal(err)
	}
	var jiffy, jiffy0 uint64 // else it would ask the kernel for the time, which costs more than admission
	if err := errors.Join(o.Jiffy.Get(&jiffy), o.Jiffy0.Get(&jiffy0)); err != nil {
		b.Fatal(err)
	}
	for name, value := range map[string]any{
		"seed": setting.Seed, "count4": o.Lines4.MaxEntries(), "count6": o.Lines6.MaxEntries(), "degrades": uint32(0),
		"jiffy": jiffy, "jiffy0": jiffy0,
	} {
		if err := spec.Variables[name].Set(value); err != nil {
			b.Fatal(err)
		}
	}
	same := make(map[string]*ebpf.Map)
	for name, m := range map[string]*ebpf.Map{
		"lines4": o.Lines4, "lines6": o.Lines6, "slots4": o.Slots4, "slots6": o.Slots6, "nodes": o.Nodes, "services": o.Services, "stats": o.Stats,
	} {
		spec.Maps[name].MaxEntries = m.MaxEntries()
		same[name] = m
	}
	c, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: same})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(c.Close)
	return c.Programs["rehome_forward"]
}

// BenchmarkMemory reports what the kernel charges for a table of 2^20 flows for each IP version.
func BenchmarkMemory(b *testing.B) {
	h := network(b, 1)[0]
	f := h.forwarder(b, Config{MaxFlows: 1 << 20})
	var bytes uint64
	for b.Loop() {
		bytes = f.memory(b)
	}
	b.ReportMetric(float64(bytes)/(1<<20), "bytes/flow")
}

func BenchmarkCommit(b *testing.B) {
	h := network(b, 1)[0]
	f := h.forwarder(b, Config{})
	if _, err := f.Adopt(flow4(), 1, 1); err != nil {
		b.Fatal(err)
	}
	epoch := uint32(1)
	for b.Loop() {
		if _, err := f.Commit(flow4(), epoch, 1); err != nil {
			b.Fatal(err)
		}
		epoch++
	}
}

func BenchmarkAdoptForget(b *testing.B) {
	h := network(b, 1)[0]
	f := h.forwarder(b, Config{})
	flows := make([]tcprepair.Flow, 64)
	for i := range flows {
		flows[i] = benchFlow(i, false)
	}
	for b.Loop() {
		if failed := fill(b, f.Flows, len(flows), false); failed > 0 {
			b.Fatal(failed)
		}
		if err := f.Forget(flows...); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(flows)), "ns/flow")
}

func BenchmarkSweep(b *testing.B) {
	h := network(b, 1)[0]
	f := h.forwarder(b, Config{MaxFlows: 1 << 20})
	const flows = 1 << 20
	fill(b, f.Flows, flows, false)
	for b.Loop() {
		c, err := f.table.sweep(4, timeouts{1 << 30, 1 << 30, 1 << 30, 1 << 30})
		if err != nil || c.live != flows {
			b.Fatal(c, err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*flows), "ns/flow")
}
