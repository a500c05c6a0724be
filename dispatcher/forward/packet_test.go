// SPDX-License-Identifier: Apache-2.0

//go:build linux

package forward

import (
	"bytes"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/rehome-net/rehome/tcprepair"
)

func flow4() tcprepair.Flow {
	return tcprepair.NewFlow(netip.MustParseAddrPort("198.51.100.1:80"), netip.MustParseAddrPort("192.0.2.7:4000"))
}

func flow6() tcprepair.Flow {
	return tcprepair.NewFlow(netip.MustParseAddrPort("[2001:db8::1]:80"), netip.MustParseAddrPort("[2001:db8::7]:4000"))
}

// node is where the flows of the fixtures go.
const node = 9

func nodeMAC() net.HardwareAddr { return net.HardwareAddr{2, 0, 0, 0, 0, 0x42} }

// stand is a forwarder with a program of each kind to put frames through.
type stand struct {
	*Forwarder
	host *host
	mac  net.HardwareAddr
}

func newStand(t testing.TB, c Config) *stand {
	t.Helper()
	h := network(t, 1)[0]
	for h.mac(t)[0] == 2 { // one address in 64: labels begin so, and are told from untouched frames by that
		h = network(t, 1)[0]
	}
	s := &stand{Forwarder: h.forwarder(t, c), host: h, mac: h.mac(t)}
	if err := s.SetNode(node, h.index(t), nodeMAC(), s.mac); err != nil {
		t.Fatal(err)
	}
	// The XDP program is attached beside the other one: BPF_PROG_RUN wants a receive queue that is ready for it.
	h.do(t, func() error {
		l, err := link.AttachXDP(link.XDPOptions{Interface: h.index(t), Program: s.table.objects.RehomeXdp, Flags: link.XDPDriverMode})
		if err == nil {
			t.Cleanup(func() { l.Close() })
		}
		return err
	})
	return s
}

// sk is the part of struct __sk_buff that BPF_PROG_RUN lets a test set.
type sk struct {
	Len, PacketType, Mark, Queue, Protocol, VLANPresent, VLANTCI, VLANProto, Priority, IngressIfindex, Ifindex uint32
}

type verdict string

// Verdicts of both kinds of program.
const (
	passed     verdict = "pass"
	dropped    verdict = "drop"
	redirected verdict = "redirect"
)

func verdictOf(mode Mode, code uint32) verdict {
	next := ^uint32(0)
	switch {
	case mode == TCX && code == next, mode == XDP && code == 2:
		return passed
	case mode == TCX && code == 2, mode == XDP && code == 1:
		return dropped
	case mode == TCX && code == 7, mode == XDP && code == 4:
		return redirected
	}
	return "neither"
}

// execute runs a program over a frame as if eth0 had received it.
func (s *stand) execute(t testing.TB, mode Mode, frame []byte) (verdict, []byte) {
	t.Helper()
	p, index := s.table.objects.RehomeForward, uint32(s.host.index(t))
	var context any = sk{Ifindex: index}
	if mode == XDP {
		p, context = s.table.objects.RehomeXdp, xdpContext{DataEnd: uint32(len(frame)), IngressIfindex: index}
	}
	options := &ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+256), Context: context}
	var code uint32
	s.host.do(t, func() (err error) {
		code, err = p.Run(options)
		return err
	})
	return verdictOf(mode, code), options.DataOut
}

func patch(b []byte, at int, v ...byte) []byte {
	b = slices.Clone(b)
	copy(b[at:], v)
	return b
}

func cut(b []byte, n int) []byte { return b[:len(b)-n] }

// reversed is the flow as its server's own packets have it.
func reversed(f tcprepair.Flow) tcprepair.Flow {
	return tcprepair.Flow{Local: f.Remote, Remote: f.Local}
}

// icmp is an error about a packet that the flow's server has sent, from a router on its way.
func icmp(mac net.HardwareAddr, f tcprepair.Flow, kind, code byte, about []byte) []byte {
	message := append([]byte{kind, code, 0, 0, 0, 0, 5, 0}, about...)
	if f.Local.Addr().Is4() {
		router := tcprepair.Flow{Local: f.Local, Remote: netip.MustParseAddrPort("203.0.113.5:1")}
		return ethernet(mac, etherIPv4, ip4(router, 1, nil, 0, message))
	}
	router := tcprepair.Flow{Local: f.Local, Remote: netip.MustParseAddrPort("[2001:db8:5::5]:1")}
	return ethernet(mac, etherIPv6, ip6(router, 58, message))
}

type fixture struct {
	name  string
	frame []byte
	want  verdict
}

// fixtures are what the table, which knows flow4 and flow6 over TCP and UDP, has to do with each kind of frame.
func fixtures(mac net.HardwareAddr) []fixture {
	tcp4, tcp6 := segment(flow4(), ack, 10), segment(flow6(), ack, 10)
	udp4, udp6 := datagram(flow4(), 10), datagram(flow6(), 10)
	plain4, plain6 := ethernet(mac, etherIPv4, ip4(flow4(), protoTCP, nil, 0, tcp4)), ethernet(mac, etherIPv6, ip6(flow6(), protoTCP, tcp6))
	options := func(n int) []byte { return slices.Repeat([]byte{1}, n) }
	with4 := func(o []byte) []byte { return ethernet(mac, etherIPv4, ip4(flow4(), protoTCP, o, 0, tcp4)) }
	with6 := func(e ...extension) []byte { return ethernet(mac, etherIPv6, ip6(flow6(), protoTCP, tcp6, e...)) }
	hop := extension{0, []byte{0, 1, 4, 0, 0, 0, 0}}
	dst := extension{60, append([]byte{1}, make([]byte, 14)...)}
	routed := extension{43, []byte{0, 4, 0, 0, 0, 0, 0}}
	fragment := func(a, b byte) extension { return extension{44, []byte{0, a, b, 1, 2, 3, 4}} }
	sent4 := ip4(reversed(flow4()), protoTCP, nil, 0x4000, segment(reversed(flow4()), ack, 8))
	sent6 := ip6(reversed(flow6()), protoTCP, segment(reversed(flow6()), ack, 8))
	sentUDP4 := ip4(reversed(flow4()), protoUDP, nil, 0, datagram(reversed(flow4()), 8))
	sentUDP6 := ip6(reversed(flow6()), protoUDP, datagram(reversed(flow6()), 8))
	about4 := func(kind, code byte, b []byte) []byte { return icmp(mac, flow4(), kind, code, b) }
	about6 := func(kind, code byte, b []byte) []byte { return icmp(mac, flow6(), kind, code, b) }
	short := ethernet(mac, etherIPv4, ip4(flow4(), protoTCP, nil, 0, segment(flow4(), ack, 0)))
	return []fixture{
		{"TCP over IPv4", plain4, redirected},
		{"TCP over IPv4, no payload", short, redirected},
		{"TCP over IPv4, padded to the Ethernet minimum", append(short, 0, 0, 0, 0, 0, 0), redirected},
		{"TCP over IPv4, oversize: more behind the packet than in it", append(slices.Clone(short), make([]byte, 1400)...), redirected},
		{"TCP over IPv4, 1500 bytes", packetOf(mac, flow4(), protoTCP, ack, 1460), redirected},
		{"TCP over IPv4, do not fragment", ethernet(mac, etherIPv4, ip4(flow4(), protoTCP, nil, 0x4000, tcp4)), redirected},
		{"TCP over IPv4, other port", patch(plain4, 14+20+3, 81), passed},
		{"TCP over IPv4, other client", patch(plain4, 14+15, 8), passed},
		{"TCP over IPv4, other server", patch(plain4, 14+19, 2), passed},
		{"TCP over IPv4, other host's MAC", patch(plain4, 5, mac[5]+1), passed},
		{"TCP over IPv4, broadcast", patch(plain4, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff), passed},
		{"TCP over IPv4, from where it would go", patch(plain4, 6, nodeMAC()...), dropped},
		{"UDP over IPv4", ethernet(mac, etherIPv4, ip4(flow4(), protoUDP, nil, 0, udp4)), redirected},
		{"UDP over IPv4, empty", ethernet(mac, etherIPv4, ip4(flow4(), protoUDP, nil, 0, datagram(flow4(), 0))), redirected},
		{"UDP over IPv4, other port", patch(ethernet(mac, etherIPv4, ip4(flow4(), protoUDP, nil, 0, udp4)), 14+20+3, 81), passed},
		{"UDP over IPv4, longer than its packet", patch(ethernet(mac, etherIPv4, ip4(flow4(), protoUDP, nil, 0, udp4)), 14+20+5, 19), passed},
		{"UDP over IPv4, shorter than its header", patch(ethernet(mac, etherIPv4, ip4(flow4(), protoUDP, nil, 0, udp4)), 14+20+5, 7), passed},
		{"SCTP over IPv4", patch(plain4, 14+9, 132), passed},
		{"IPv4, 4 bytes of options", with4(options(4)), redirected},
		{"IPv4, 40 bytes of options", with4(options(40)), redirected},
		{"IPv4, record route", with4([]byte{7, 7, 4, 131, 137, 131, 137, 0}), redirected},
		{"IPv4, loose source route", with4([]byte{131, 7, 4, 1, 2, 3, 4, 0}), passed},
		{"IPv4, strict source route behind others", with4([]byte{1, 1, 68, 4, 5, 0, 137, 7, 4, 1, 2, 3, 4, 0, 0, 0}), passed},
		{"IPv4, source route behind the end", with4([]byte{0, 131, 3, 4}), redirected},
		{"IPv4, option of length 0", with4([]byte{7, 0, 131, 3}), passed},
		{"IPv4, version 5", patch(plain4, 14, 0x55), passed},
		{"IPv4, header of 16 bytes", patch(plain4, 14, 0x44), passed},
		{"IPv4, longer than the frame", patch(plain4, 14+3, 51), passed},
		{"IPv4, shorter than its headers", patch(plain4, 14+3, 27), passed},
		{"IPv4, length 0", patch(plain4, 14+2, 0, 0), passed},
		{"IPv4, TCP header of 16 bytes", patch(plain4, 14+20+12, 4<<4), passed},
		{"IPv4, TCP header beyond the packet", patch(plain4, 14+20+12, 15<<4), passed},
		{"IPv4, cut in the TCP header", cut(plain4, 15), passed},
		{"IPv4, later fragment of nothing known", ethernet(mac, etherIPv4, ip4(flow4(), protoTCP, nil, 0x0010, tcp4)), passed},
		{"TCP over IPv6", plain6, redirected},
		{"TCP over IPv6, other port", patch(plain6, 14+40+3, 81), passed},
		{"TCP over IPv6, other client", patch(plain6, 14+8, 0x30), passed},
		{"TCP over IPv6, other server", patch(plain6, 14+24, 0x30), passed},
		{"TCP over IPv6, from where it would go", patch(plain6, 6, nodeMAC()...), dropped},
		{"UDP over IPv6", ethernet(mac, etherIPv6, ip6(flow6(), protoUDP, udp6)), redirected},
		{"UDP over IPv6, other port", patch(ethernet(mac, etherIPv6, ip6(flow6(), protoUDP, udp6)), 14+40+3, 81), passed},
		{"UDP over IPv6, length 0", patch(ethernet(mac, etherIPv6, ip6(flow6(), protoUDP, udp6)), 14+40+4, 0, 0), passed},
		{"IPv6, hop-by-hop options", with6(hop), redirected},
		{"IPv6, three extensions", with6(hop, dst, routed), redirected},
		{"IPv6, four extensions", with6(hop, dst, routed, dst), redirected},
		{"IPv6, five extensions", with6(hop, dst, routed, dst, dst), passed},
		{"IPv6, atomic fragment", with6(fragment(0, 0)), redirected},
		{"IPv6, later fragment of nothing known", with6(fragment(1, 0)), passed},
		{"IPv6, source route not at its end", with6(extension{43, []byte{0, 4, 1, 0, 0, 0, 0}}), passed},
		{"IPv6, authentication header", with6(extension{51, []byte{0, 0, 0, 0, 0, 0, 0}}), passed},
		{"IPv6, extension beyond the packet", with6(extension{60, []byte{200, 0, 0, 0, 0, 0, 0}}), passed},
		{"IPv6, no next header", patch(plain6, 14+6, 59), passed},
		{"IPv6, version 4", patch(plain6, 14, 0x40), passed},
		{"IPv6, longer than the frame", patch(plain6, 14+5, 31), passed},
		{"IPv6, cut in the TCP header", cut(plain6, 11), passed},
		{"ICMP echo", about4(8, 0, sent4), passed},
		{"ICMP echo reply", about4(0, 0, sent4), passed},
		{"ICMP fragmentation needed", about4(3, 4, sent4), redirected},
		{"ICMP port unreachable about UDP", about4(3, 3, sentUDP4), redirected},
		{"ICMP time exceeded, 8 bytes of the transport header", about4(11, 0, sent4[:28]), redirected},
		{"ICMP time exceeded, 4 bytes of the transport header", about4(11, 0, sent4[:24]), passed},
		{"ICMP parameter problem", about4(12, 0, sent4), redirected},
		{"ICMP redirect", about4(5, 0, sent4), passed},
		{"ICMP about a packet with options", about4(3, 4, ip4(reversed(flow4()), protoTCP, options(8), 0, segment(reversed(flow4()), ack, 8))), redirected},
		{"ICMP about an unknown flow", about4(3, 4, patch(sent4, 20+3, 1)), passed},
		{"ICMP about a later fragment", about4(3, 4, patch(sent4, 6, 0, 8)), passed},
		{"ICMP about a packet of another server", about4(3, 4, patch(sent4, 15, 2)), passed},
		{"ICMP about a packet of the client's", about4(3, 4, ip4(flow4(), protoTCP, nil, 0, tcp4)), passed},
		{"ICMP about IPv6", about4(3, 4, patch(sent4, 0, 0x65)), passed},
		{"ICMP, nothing embedded", about4(3, 4, nil), passed},
		{"ICMPv6 echo", about6(128, 0, sent6), passed},
		{"ICMPv6 packet too big", about6(2, 0, sent6), redirected},
		{"ICMPv6 packet too big about UDP", about6(2, 0, sentUDP6), redirected},
		{"ICMPv6 time exceeded about a packet with extensions", about6(3, 0, ip6(reversed(flow6()), protoTCP, segment(reversed(flow6()), ack, 8), hop, dst)), redirected},
		{"ICMPv6 unreachable about an unknown flow", about6(1, 0, patch(sent6, 40+3, 1)), passed},
		{"ICMPv6 about a packet of another server", about6(2, 0, patch(sent6, 8, 0x30)), passed},
		{"ICMPv6, cut", about6(2, 0, sent6[:44]), passed},
		{"neighbour solicitation", about6(135, 0, make([]byte, 16)), passed},
		{"neighbour advertisement", about6(136, 0, make([]byte, 16)), passed},
		{"VLAN tag", ethernet(mac, 0x8100, append([]byte{0, 5, 8, 0}, ip4(flow4(), protoTCP, nil, 0, tcp4)...)), passed},
		{"ARP", ethernet(mac, 0x0806, make([]byte, 46)), passed},
		{"runt", ethernet(mac, etherIPv4, []byte{0x45}), passed},
		{"nothing but Ethernet", ethernet(mac, etherIPv6, nil), passed},
	}
}

func TestPackets(t *testing.T) {
	s := newStand(t, Config{})
	for _, f := range []tcprepair.Flow{flow4(), flow6()} {
		for _, of := range []*Flows{s.Flows, s.UDP()} {
			if _, err := of.Adopt(f, 1, node); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, c := range fixtures(s.mac) {
		for _, mode := range []Mode{TCX, XDP} {
			t.Run(c.name+"/"+mode.String(), func(t *testing.T) {
				if len(c.frame) < 20 {
					if mode == TCX {
						t.Log("BPF_PROG_RUN refuses an empty network header: XDP only")
						return
					}
				}
				got, out := s.execute(t, mode, c.frame)
				want := c.frame
				if c.want == redirected {
					want = slices.Concat(nodeMAC(), s.mac, c.frame[12:])
				}
				if got != c.want || !bytes.Equal(out, want) {
					t.Errorf("%s, want %s\n got %x\nwant %x", got, c.want, out, want)
				}
			})
		}
	}
	if s := s.Stats(); s.Loop != 4 || s.Errors != 16 {
		t.Errorf("%+v: want 4 loops and 16 ICMP errors", s)
	}
}

// Flows of the dispatcher itself, and flows of nodes nobody knows the way to.
func TestPacketsByOwner(t *testing.T) {
	for _, mode := range []Mode{TCX, XDP} {
		s := newStand(t, Config{})
		for _, f := range []tcprepair.Flow{flow4(), flow6()} {
			frame := packetOf(s.mac, f, protoTCP, ack, 0)
			about := icmp(s.mac, f, 3, 4, ip4(reversed(flow4()), protoTCP, nil, 0, segment(reversed(f), ack, 0)))
			if f == flow6() {
				about = icmp(s.mac, f, 2, 0, ip6(reversed(f), protoTCP, segment(reversed(f), ack, 0)))
			}
			for _, step := range []struct {
				name     string
				do       func() error
				frame    []byte
				want     verdict
				counters Stats
			}{
				{"unknown", func() error { return nil }, frame, passed, Stats{}},
				{"the dispatcher's", func() error { _, err := s.Adopt(f, 1, 0); return err }, frame, passed, Stats{}},
				{"error about it", func() error { return nil }, about, passed, Stats{}},
				{"moved to a node", func() error { _, err := s.Commit(f, 1, node); return err }, frame, redirected, Stats{Forwarded: 1}},
				{"error about it", func() error { return nil }, about, redirected, Stats{Forwarded: 1, Errors: 1}},
				{"granted", func() error { _, err := s.Grant(f, 2, node); return err }, frame, passed, Stats{}},
				{"granted, and ends", func() error { return nil }, packetOf(s.mac, f, protoTCP, fin|ack, 0), passed, Stats{}},
				{"taken back", func() error { _, err := s.Commit(f, 3, 0); return err }, frame, passed, Stats{}},
				{"granted again", func() error { _, err := s.Grant(f, 4, node); return err }, frame, passed, Stats{}},
				{"settled", func() error { _, err := s.Settle(f, 5, node); return err }, frame, redirected, Stats{Forwarded: 1}},
				{"granted to nobody's end", func() error { _, err := s.Grant(f, 5, node); return err }, frame, passed, Stats{}},
				{"after a restart", s.table.settleAll, frame, redirected, Stats{Forwarded: 1}},
				{"moved to nowhere", func() error { _, err := s.Commit(f, 6, 77); return err }, frame, dropped, Stats{NoNode: 1}},
				{"forgotten", func() error { return s.Forget(f) }, frame, passed, Stats{}},
			} {
				before := s.Stats()
				if err := step.do(); err != nil {
					t.Fatalf("%s: %v", step.name, err)
				}
				if got, _ := s.execute(t, mode, step.frame); got != step.want {
					t.Errorf("%v, %v, %s: %s, want %s", mode, f, step.name, got, step.want)
				}
				after := s.Stats()
				got := Stats{Forwarded: after.Forwarded - before.Forwarded, Errors: after.Errors - before.Errors, NoNode: after.NoNode - before.NoNode}
				if got != step.counters {
					t.Errorf("%v, %v, %s: counted %+v, want %+v", mode, f, step.name, got, step.counters)
				}
			}
		}
	}
}

// Later fragments follow the first, and only the first of their own packet.
func TestFragments(t *testing.T) {
	s := newStand(t, Config{})
	for _, mode := range []Mode{TCX, XDP} {
		for _, f := range []tcprepair.Flow{flow4(), flow6()} {
			for proto, of := range map[byte]*Flows{protoTCP: s.Flows, protoUDP: s.UDP()} {
				if _, err := of.Adopt(f, 1, node); err != nil {
					t.Fatal(err)
				}
				body := segment(f, ack, 100)
				if proto == protoUDP {
					body = patch(datagram(f, 100), 5, 250) // the length of the whole
				}
				// cut is a fragment of the packet with the number id. at: in units of 8 bytes.
				cut := func(id byte, at uint16, more bool, body []byte) []byte {
					if f == flow4() {
						word := at
						if more {
							word |= 0x2000
						}
						b := ethernet(s.mac, etherIPv4, ip4(f, proto, nil, word, body))
						return patch(b, 14+5, id)
					}
					word := at << 3
					if more {
						word |= 1
					}
					return ethernet(s.mac, etherIPv6, ip6(f, proto, body, extension{44, []byte{0, byte(word >> 8), byte(word), 0, 0, byte(mode), id}}))
				}
				last := make([]byte, 30)
				for i, step := range []struct {
					frame []byte
					want  verdict
				}{
					{cut(1, 15, false, last), passed}, // ahead of the first: nobody knows
					{cut(1, 0, true, body), redirected},
					{cut(1, 15, true, last), redirected},
					{cut(1, 20, false, last), redirected},
					{cut(2, 15, false, last), passed},
					{cut(2, 0, true, body[:4]), passed}, // too short for ports and all
					{cut(2, 15, false, last), passed},
				} {
					if got, _ := s.execute(t, mode, step.frame); got != step.want {
						t.Errorf("%v, protocol %d, %v, fragment %d: %s, want %s", mode, proto, f, i, got, step.want)
					}
				}
				// The number comes round, for a packet of another flow of the same two hosts.
				other := patch(body, 3, 81)
				if got, _ := s.execute(t, mode, cut(1, 0, true, other)); got != passed {
					t.Errorf("first fragment of an unknown flow: %s", got)
				}
				if got, _ := s.execute(t, mode, cut(1, 15, false, last)); got != passed {
					t.Errorf("%v, protocol %d, %v: a fragment followed another packet's first: %s", mode, proto, f, got)
				}
				if err := of.Forget(f); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	if got := s.Stats().Fragments; got != 3*2*2*2 {
		t.Errorf("%d fragments counted", got)
	}
}
