// SPDX-License-Identifier: Apache-2.0

//go:build linux

package gate

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/rehome-net/rehome/tcprepair"
)

// Program verdicts, as in bpf/kernel.h.
const (
	verdictNext     = ^uint32(0)
	verdictDrop     = 2
	verdictRedirect = 7
)

const (
	fin = 1
	syn = 2
	rst = 4
	ack = 16
)

func packet4() tcprepair.Flow {
	return tcprepair.NewFlow(netip.MustParseAddrPort("198.51.100.1:80"), netip.MustParseAddrPort("192.0.2.7:4000"))
}

func packet6() tcprepair.Flow {
	return tcprepair.NewFlow(netip.MustParseAddrPort("[2001:db8::1]:80"), netip.MustParseAddrPort("[2001:db8::7]:4000"))
}

func ethernet(dst net.HardwareAddr, etherType uint16, payload []byte) []byte {
	b := append(append([]byte{}, dst...), 2, 0, 0, 0, 0, 0x99)
	return append(binary.BigEndian.AppendUint16(b, etherType), payload...)
}

func segment(f tcprepair.Flow, flags byte, payload int) []byte {
	b := binary.BigEndian.AppendUint16(nil, f.Remote.Port())
	b = binary.BigEndian.AppendUint16(b, f.Local.Port())
	b = append(b, 0, 0, 0, 1, 0, 0, 0, 2, 5<<4, flags, 0xff, 0xff, 0, 0, 0, 0)
	return append(b, make([]byte, payload)...)
}

func ip4(f tcprepair.Flow, options int, fragment uint16, tcp []byte) []byte {
	b := []byte{0x45 + byte(options/4), 0}
	b = binary.BigEndian.AppendUint16(b, uint16(20+options+len(tcp)))
	b = binary.BigEndian.AppendUint16(append(b, 0, 1), fragment)
	b = append(b, 64, protoTCP, 0, 0)
	b = append(append(b, f.Remote.Addr().AsSlice()...), f.Local.Addr().AsSlice()...)
	b = append(append(b, make([]byte, options)...), tcp...)
	binary.BigEndian.PutUint16(b[10:], checksum(b[:20+options]))
	return b
}

// ip6 chains extension headers (each begins with a placeholder for its next-header byte) before the segment.
func ip6(f tcprepair.Flow, tcp []byte, ext ...extension) []byte {
	var rest []byte
	for i, e := range ext {
		next := byte(protoTCP)
		if i+1 < len(ext) {
			next = ext[i+1].proto
		}
		rest = append(append(rest, next), e.rest...)
	}
	rest = append(rest, tcp...)
	next := byte(protoTCP)
	if len(ext) > 0 {
		next = ext[0].proto
	}
	b := binary.BigEndian.AppendUint16([]byte{0x60, 0, 0, 0}, uint16(len(rest)))
	b = append(b, next, 64)
	b = append(append(b, f.Remote.Addr().AsSlice()...), f.Local.Addr().AsSlice()...)
	return append(b, rest...)
}

type extension struct {
	proto byte
	rest  []byte // after the next-header byte
}

func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

func cut(b []byte, n int) []byte { return b[:len(b)-n] }

func patch(b []byte, at int, v byte) []byte {
	b = slices.Clone(b)
	b[at] = v
	return b
}

// frames are what the parsers of both sides, BPF and Go, must agree on.
func frames(mac net.HardwareAddr) []struct {
	name  string
	frame []byte
	ours  bool
} {
	tcp4, tcp6 := segment(packet4(), ack, 10), segment(packet6(), ack, 10)
	plain4, plain6 := ethernet(mac, etherIPv4, ip4(packet4(), 0, 0, tcp4)), ethernet(mac, etherIPv6, ip6(packet6(), tcp6))
	hop := extension{protoHopByHop, []byte{0, 1, 4, 0, 0, 0, 0}}
	dst := extension{protoDestination, append([]byte{1}, make([]byte, 14)...)}
	routed := extension{protoRouting, []byte{0, 4, 0, 0, 0, 0, 0}}
	return []struct {
		name  string
		frame []byte
		ours  bool
	}{
		{"IPv4", plain4, true},
		{"IPv4, padded to the Ethernet minimum", append(ethernet(mac, etherIPv4, ip4(packet4(), 0, 0, segment(packet4(), ack, 0))), 0, 0, 0, 0, 0, 0), true},
		{"IPv4, don't fragment", ethernet(mac, etherIPv4, ip4(packet4(), 0, 0x4000, tcp4)), true},
		{"IPv4, 4 bytes of options", ethernet(mac, etherIPv4, ip4(packet4(), 4, 0, tcp4)), true},
		{"IPv4, 40 bytes of options", ethernet(mac, etherIPv4, ip4(packet4(), 40, 0, tcp4)), true},
		{"IPv4, first fragment", ethernet(mac, etherIPv4, ip4(packet4(), 0, 0x2000, tcp4)), false},
		{"IPv4, later fragment", ethernet(mac, etherIPv4, ip4(packet4(), 0, 0x0010, tcp4)), false},
		{"IPv4, UDP", patch(plain4, 14+9, 17), false},
		{"IPv4, version 5", patch(plain4, 14, 0x55), false},
		{"IPv4, header of 16 bytes", patch(plain4, 14, 0x44), false},
		{"IPv4, longer than the frame", patch(plain4, 14+3, 51), false},
		{"IPv4, shorter than its headers", patch(plain4, 14+3, 39), false},
		{"IPv4, TCP header of 16 bytes", patch(plain4, 14+20+12, 4<<4), false},
		{"IPv4, TCP header beyond the packet", patch(plain4, 14+20+12, 15<<4), false},
		{"IPv4, cut in the TCP header", cut(plain4, 15), false},
		{"IPv6", plain6, true},
		{"IPv6, hop-by-hop options", ethernet(mac, etherIPv6, ip6(packet6(), tcp6, hop)), true},
		{"IPv6, three extensions", ethernet(mac, etherIPv6, ip6(packet6(), tcp6, hop, dst, extension{protoRouting, []byte{0, 4, 0, 0, 0, 0, 0}})), true},
		{"IPv6, four extensions", ethernet(mac, etherIPv6, ip6(packet6(), tcp6, hop, dst, routed, dst)), true},
		{"IPv6, five extensions", ethernet(mac, etherIPv6, ip6(packet6(), tcp6, hop, dst, routed, dst, dst)), false},
		{"IPv6, atomic fragment", ethernet(mac, etherIPv6, ip6(packet6(), tcp6, extension{protoFragment, []byte{0, 0, 0, 1, 2, 3, 4}})), true},
		{"IPv6, first fragment", ethernet(mac, etherIPv6, ip6(packet6(), tcp6, extension{protoFragment, []byte{0, 0, 1, 1, 2, 3, 4}})), false},
		{"IPv6, later fragment", ethernet(mac, etherIPv6, ip6(packet6(), tcp6, extension{protoFragment, []byte{0, 1, 0, 1, 2, 3, 4}})), false},
		{"IPv6, source route not at its end", ethernet(mac, etherIPv6, ip6(packet6(), tcp6, extension{protoRouting, []byte{0, 4, 1, 0, 0, 0, 0}})), false},
		{"IPv6, authentication header", ethernet(mac, etherIPv6, ip6(packet6(), tcp6, extension{51, []byte{0, 0, 0, 0, 0, 0, 0}})), false},
		{"IPv6, extension beyond the packet", ethernet(mac, etherIPv6, ip6(packet6(), tcp6, extension{protoDestination, []byte{200, 0, 0, 0, 0, 0, 0}})), false},
		{"IPv6, no TCP", patch(plain6, 14+6, 58), false},
		{"IPv6, version 4", patch(plain6, 14, 0x40), false},
		{"IPv6, longer than the frame", patch(plain6, 14+5, 31), false},
		{"IPv6, cut in the TCP header", cut(plain6, 11), false},
		{"VLAN tag", ethernet(mac, 0x8100, append([]byte{0, 5, 8, 0}, ip4(packet4(), 0, 0, tcp4)...)), false},
		{"ARP", ethernet(mac, 0x0806, make([]byte, 46)), false},
		{"runt", ethernet(mac, etherIPv4, []byte{0x45}), false},
		{"nothing but Ethernet", ethernet(mac, etherIPv6, nil), false},
	}
}

// sk is the part of struct __sk_buff that BPF_PROG_RUN lets a test set.
type sk struct {
	Len, PacketType, Mark, Queue, Protocol, VLANPresent, VLANTCI, VLANProto, Priority, IngressIfindex, Ifindex uint32
}

// execute runs a program over a frame as if eth0 had received it.
func (h *host) execute(t testing.TB, p *ebpf.Program, frame []byte, mark uint32) (uint32, []byte) {
	t.Helper()
	var verdict uint32
	out := make([]byte, len(frame)+256)
	options := &ebpf.RunOptions{Data: frame, DataOut: out, Context: sk{Ifindex: uint32(h.index(t)), Mark: mark}}
	h.do(t, func() (err error) {
		verdict, err = p.Run(options)
		return err
	})
	return verdict, options.DataOut
}

func TestPackets(t *testing.T) {
	h := network(t, 1)[0]
	g := h.gated(t)
	mac, next := h.mac(t), net.HardwareAddr{2, 0, 0, 0, 0, 0x42}
	if err := g.SetNode(9, h.index(t), next, mac); err != nil {
		t.Fatal(err)
	}
	for _, f := range []tcprepair.Flow{packet4(), packet6()} {
		if _, err := g.Adopt(f, 1, 9); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range frames(mac) {
		t.Run(c.name, func(t *testing.T) {
			f, ours := frameFlow(c.frame)
			if ours != c.ours || ours && f != packet4() && f != packet6() {
				t.Errorf("frameFlow = %v, %v", f, ours)
			}
			if len(c.frame) < 20 {
				return // BPF_PROG_RUN refuses an empty network header
			}
			verdict, out := h.execute(t, g.table.objects.RehomeIn, c.frame, 0)
			if !c.ours {
				if verdict != verdictNext || !bytes.Equal(out, c.frame) {
					t.Errorf("verdict %d, changed: %v; want it untouched", verdict, !bytes.Equal(out, c.frame))
				}
				return
			}
			want := slices.Concat(next, mac, c.frame[12:])
			if verdict != verdictRedirect || !bytes.Equal(out, want) {
				t.Errorf("verdict %d\n got %x\nwant %x", verdict, out, want)
			}
		})
	}
}

// Of another flow, to another host, or released: the table has no say.
func TestPacketsOfOthers(t *testing.T) {
	h := network(t, 1)[0]
	g := h.gated(t)
	mac := h.mac(t)
	if err := g.SetNode(9, h.index(t), net.HardwareAddr{2, 0, 0, 0, 0, 0x42}, mac); err != nil {
		t.Fatal(err)
	}
	if _, err := g.Adopt(packet4(), 1, 9); err != nil {
		t.Fatal(err)
	}
	frame := ethernet(mac, etherIPv4, ip4(packet4(), 0, 0, segment(packet4(), ack, 0)))
	in := g.table.objects.RehomeIn
	for name, other := range map[string][]byte{
		"other port":   patch(frame, 14+20+3, 81),
		"other client": patch(frame, 14+15, 8),
		"other server": patch(frame, 14+19, 2),
		"other host":   patch(frame, 5, mac[5]+1),
		"broadcast":    slices.Concat(bytes.Repeat([]byte{0xff}, 6), frame[6:]),
	} {
		if verdict, _ := h.execute(t, in, other, 0); verdict != verdictNext {
			t.Errorf("%s: verdict %d", name, verdict)
		}
	}
	if verdict, _ := h.execute(t, in, frame, 0x7265686f); verdict != verdictNext {
		t.Errorf("released frame: verdict %d", verdict)
	}
	if verdict, _ := h.execute(t, in, frame, 0); verdict != verdictRedirect {
		t.Error("a frame from somewhere else is not forwarded")
	}
	back := slices.Concat(frame[:6], []byte{2, 0, 0, 0, 0, 0x42}, frame[12:])
	if verdict, _ := h.execute(t, in, back, 0); verdict != verdictDrop || g.Stats().Loop != 1 {
		t.Errorf("a frame from the node it would go to: verdict %d, %+v", verdict, g.Stats())
	}
}

// Strays lose a hop, so that two hosts sending them to one another do not do so for long.
func TestStrayHops(t *testing.T) {
	h := network(t, 1)[0]
	g := h.gated(t)
	mac, next := h.mac(t), net.HardwareAddr{2, 0, 0, 0, 0, 0x42}
	if err := g.SetNode(9, h.index(t), next, mac); err != nil {
		t.Fatal(err)
	}
	for _, f := range []tcprepair.Flow{packet4(), packet6()} {
		if _, err := g.Forward(f, 9, time.Minute); err != nil {
			t.Fatal(err)
		}
	}
	in := g.table.objects.RehomeIn
	_, out := h.execute(t, in, ethernet(mac, etherIPv4, ip4(packet4(), 0, 0, segment(packet4(), ack, 0))), 0)
	if out[14+8] != 63 || checksum(out[14:34]) != 0 {
		t.Errorf("TTL %d, checksum of the header %#x", out[14+8], checksum(out[14:34]))
	}
	plain6 := ethernet(mac, etherIPv6, ip6(packet6(), segment(packet6(), ack, 0)))
	if _, out = h.execute(t, in, plain6, 0); out[14+7] != 63 {
		t.Errorf("hop limit %d", out[14+7])
	}
	if verdict, _ := h.execute(t, in, patch(plain6, 14+7, 1), 0); verdict != verdictDrop {
		t.Errorf("last hop: verdict %d", verdict)
	}
	// A pure SYN is the tuple's next connection.
	fresh := ethernet(mac, etherIPv6, ip6(packet6(), segment(packet6(), syn, 0)))
	if verdict, _ := h.execute(t, in, fresh, 0); verdict != verdictNext {
		t.Errorf("SYN: verdict %d", verdict)
	}
	if verdict, _ := h.execute(t, in, plain6, 0); verdict != verdictNext {
		t.Errorf("after the SYN: verdict %d", verdict)
	}
}

func TestSYN(t *testing.T) {
	h := network(t, 1)[0]
	g := h.gated(t)
	mac := h.mac(t)
	in := g.table.objects.RehomeIn
	frame := func(flags byte) []byte {
		return ethernet(mac, etherIPv4, ip4(packet4(), 0, 0, segment(packet4(), flags, 0)))
	}
	for _, n := range []Node{1, 2} {
		if err := g.SetNode(n, h.index(t), net.HardwareAddr{2, 0, 0, 0, 0, byte(n)}, mac); err != nil {
			t.Fatal(err)
		}
	}
	if err := g.SetService(packet4().Local, []Node{1, 0, 2}); err != nil {
		t.Fatal(err)
	}
	for i, s := range []struct {
		flags   byte
		verdict uint32
		node    Node
		known   bool
	}{
		{ack, verdictNext, 0, false},
		{syn | ack, verdictNext, 0, false},
		{rst, verdictNext, 0, false},
		{syn | 0xc0, verdictRedirect, 1, true}, // with ECN's bits
		{syn, verdictRedirect, 1, true},
		{ack, verdictRedirect, 1, true},
		{syn | fin, verdictRedirect, 1, true},
		{syn, verdictNext, 0, true}, // the next connection: this host
		{syn, verdictNext, 0, true},
		{ack, verdictNext, 0, true},
		{syn, verdictRedirect, 2, true},
		{rst, verdictRedirect, 2, true},
	} {
		verdict, out := h.execute(t, in, frame(s.flags), 0)
		r, err := g.Route(packet4())
		if verdict != s.verdict || r.Node != s.node || (err == nil) != s.known || s.known && r.Epoch != 1 {
			t.Errorf("step %d: flags %#x: verdict %d, route %+v, %v", i, s.flags, verdict, r, err)
		}
		if verdict == verdictRedirect && out[5] != byte(s.node) {
			t.Errorf("step %d: sent to %x", i, out[:6])
		}
	}
	// A move of the former connection that commits late must not catch the next one, which is of epoch 1 as well.
	h.execute(t, in, frame(syn), 0)
	if _, err := g.Commit(packet4(), 1, 2); !errors.Is(err, ErrEpoch) {
		t.Errorf("committed a flow in its handshake: %v", err)
	}
	h.execute(t, in, frame(ack), 0)
	if _, err := g.Commit(packet4(), 1, 2); err != nil {
		t.Errorf("commit after the handshake: %v", err)
	}
	// Nobody left: the own stack answers.
	for _, n := range []Node{0, 1, 2} {
		if err := g.DrainNode(n, true); err != nil {
			t.Fatal(err)
		}
	}
	if err := g.Forget(packet4()); err != nil {
		t.Fatal(err)
	}
	if verdict, _ := h.execute(t, in, frame(syn), 0); verdict != verdictNext {
		t.Errorf("all drained: verdict %d", verdict)
	}
	// A flow whose node is unknown is never answered by the wrong stack.
	if _, err := g.Adopt(packet4(), 1, 77); err != nil {
		t.Fatal(err)
	}
	if verdict, _ := h.execute(t, in, frame(ack), 0); verdict != verdictDrop || g.Stats().NoNode != 1 {
		t.Errorf("unknown node: verdict %d, %+v", verdict, g.Stats())
	}
	if err := g.RemoveService(packet4().Local); err != nil {
		t.Fatal(err)
	}
}

// A SYN that cannot be recorded is dropped, and not sent where its connection would not be found again.
func TestSYNTableFull(t *testing.T) {
	h := network(t, 1)[0]
	g, err := h.open(t, Config{Interfaces: []string{"eth0"}, MaxFlows: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	if err := g.SetService(packet4().Local, []Node{0}); err != nil {
		t.Fatal(err)
	}
	verdicts := map[uint32]int{}
	for port := range byte(200) {
		f := ethernet(h.mac(t), etherIPv4, ip4(packet4(), 0, 0, segment(packet4(), syn, 0)))
		verdict, _ := h.execute(t, g.table.objects.RehomeIn, patch(f, 14+20+1, port), 0)
		verdicts[verdict]++
	}
	if verdicts[verdictNext] == 0 || verdicts[verdictDrop] == 0 || g.Stats().Full != uint64(verdicts[verdictDrop]) {
		t.Errorf("verdicts %v, %+v", verdicts, g.Stats())
	}
}

func TestEgressPackets(t *testing.T) {
	h := network(t, 1)[0]
	g := h.gated(t)
	reply := tcprepair.Flow{Local: packet4().Remote, Remote: packet4().Local}
	frame := func(payload int) []byte {
		return ethernet(h.mac(t), etherIPv4, ip4(reply, 0, 0, segment(reply, ack, payload)))
	}
	out := g.table.objects.RehomeOut
	for _, s := range []struct {
		name       string
		do         func() error
		bare, data uint32
	}{
		{"no hold", func() error { return nil }, verdictNext, verdictNext},
		{"ingress hold", func() error { return g.Hold(packet4(), Ingress, time.Minute) }, verdictNext, verdictNext},
		{"both", func() error { return g.Hold(packet4(), Egress, time.Minute) }, verdictRedirect, verdictDrop},
		{"another flow too", func() error { return g.Hold(packet6(), Egress, time.Minute) }, verdictRedirect, verdictDrop},
		{"released", func() error { _, err := g.Release(packet4()); return err }, verdictNext, verdictNext},
	} {
		if err := s.do(); err != nil {
			t.Fatal(err)
		}
		bare, _ := h.execute(t, out, frame(0), 0)
		data, _ := h.execute(t, out, frame(1), 0)
		if bare != s.bare || data != s.data {
			t.Errorf("%s: acknowledgement %d, data %d; want %d, %d", s.name, bare, data, s.bare, s.data)
		}
	}
}

// What a tap carries back is only what this process wrote on purpose.
func TestTapRefusesForeignFrames(t *testing.T) {
	h := network(t, 1)[0]
	g := h.gated(t)
	frame := ethernet(h.mac(t), etherIPv4, ip4(packet4(), 0, 0, segment(packet4(), ack, 0)))
	if verdict, _ := h.execute(t, g.table.objects.RehomeTap, frame, 0); verdict != verdictDrop {
		t.Errorf("verdict %d", verdict)
	}
}

func FuzzFrameFlow(f *testing.F) {
	for _, c := range frames(net.HardwareAddr{2, 0, 0, 0, 0, 1}) {
		f.Add(c.frame)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		before := slices.Clone(b)
		flow, ok := frameFlow(b)
		if !bytes.Equal(b, before) {
			t.Fatal("frame was changed")
		}
		if ok != flow.IsValid() {
			t.Fatalf("flow %v, %v", flow, ok)
		}
	})
}

// The two parsers agree on whatever frame: what BPF holds, user space recognises.
func FuzzParsersAgree(f *testing.F) {
	if os.Geteuid() != 0 {
		f.Skip("needs root: runs a BPF program")
	}
	h := network(f, 1)[0]
	g := h.gated(f)
	mac := h.mac(f)
	for _, c := range frames(mac) {
		f.Add(c.frame)
	}
	context := sk{Ifindex: uint32(h.index(f))}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < 34 || len(b) > 1500 || !bytes.Equal(b[:6], mac) {
			return
		}
		flow, ok := frameFlow(b)
		if ok {
			if err := g.Hold(flow, Ingress, time.Minute); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = g.Forget(flow) }()
		}
		var verdict uint32
		h.do(t, func() (err error) {
			verdict, err = g.table.objects.RehomeIn.Run(&ebpf.RunOptions{Data: b, Context: context})
			return err
		})
		if held := verdict == verdictRedirect; held != ok {
			t.Fatalf("BPF holds it: %v; user space knows it: %v", held, ok)
		}
	})
}
