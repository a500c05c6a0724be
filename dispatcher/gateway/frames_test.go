// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"bytes"
	"net"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/dispatcher/session"
	"github.com/rehome-net/rehome/dispatcher/session/inspect"
)

// What servers and clients are called in these tests.
const (
	signalPort = 554
	datagrams  = 5060
)

func flow4() session.Key {
	return session.Key{
		Client: netip.MustParseAddrPort("198.51.100.7:40000"), Server: netip.MustParseAddrPort("192.0.2.1:554"), Protocol: unix.IPPROTO_TCP,
	}
}

func flow6() session.Key {
	return session.Key{
		Client: netip.MustParseAddrPort("[2001:db8:1::7]:40000"), Server: netip.MustParseAddrPort("[2001:db8::1]:554"), Protocol: unix.IPPROTO_TCP,
	}
}

func over(protocol uint8, port uint16, k session.Key) session.Key {
	k.Protocol, k.Server = protocol, netip.AddrPortFrom(k.Server.Addr(), port)
	return k
}

// part is a TCP segment in a few words.
type part struct {
	seq           uint32
	text          string
	syn, fin, rst bool
}

var (
	gatewayMAC = net.HardwareAddr{2, 0, 0, 0, 0, 0xfe}
	serverMAC  = net.HardwareAddr{2, 0, 0, 0, 0, 0x11}
)

// frameOf makes the frame in which a server sends a segment or datagram to a client.
func frameOf(t testing.TB, k session.Key, p part) []byte {
	t.Helper()
	eth := &layers.Ethernet{DstMAC: gatewayMAC, SrcMAC: serverMAC, EthernetType: layers.EthernetTypeIPv4}
	stack := []gopacket.SerializableLayer{eth}
	var network gopacket.NetworkLayer
	proto := layers.IPProtocol(k.Protocol)
	if k.Server.Addr().Is4() {
		ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: proto, SrcIP: k.Server.Addr().AsSlice(), DstIP: k.Client.Addr().AsSlice()}
		network, stack = ip, append(stack, ip)
	} else {
		eth.EthernetType = layers.EthernetTypeIPv6
		ip := &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: proto, SrcIP: k.Server.Addr().AsSlice(), DstIP: k.Client.Addr().AsSlice()}
		network, stack = ip, append(stack, ip)
	}
	if k.Protocol == unix.IPPROTO_TCP {
		tcp := &layers.TCP{
			SrcPort: layers.TCPPort(k.Server.Port()), DstPort: layers.TCPPort(k.Client.Port()), Seq: p.seq, Window: 512,
			SYN: p.syn, FIN: p.fin, RST: p.rst, ACK: true,
		}
		if err := tcp.SetNetworkLayerForChecksum(network); err != nil {
			t.Fatal(err)
		}
		stack = append(stack, tcp)
	} else {
		udp := &layers.UDP{SrcPort: layers.UDPPort(k.Server.Port()), DstPort: layers.UDPPort(k.Client.Port())}
		if err := udp.SetNetworkLayerForChecksum(network); err != nil {
			t.Fatal(err)
		}
		stack = append(stack, udp)
	}
	b := gopacket.NewSerializeBuffer()
	err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, append(stack, gopacket.Payload(p.text))...)
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Clone(b.Bytes())
}

// lineParser is a signalling protocol for tests: what stands behind "say " on a line is a half's Session, "secret" makes the rest opaque.
type lineParser struct {
	flow   session.Key
	rest   []byte
	gaps   int
	opaque bool
}

func newLineParser(_ Mode, flow session.Key) Parser { return &lineParser{flow: flow} }

func (p *lineParser) Parse(b []byte) (halves [][]byte) {
	p.rest = append(p.rest, b...)
	for {
		line, rest, ok := bytes.Cut(p.rest, []byte("\n"))
		if !ok {
			return halves
		}
		p.rest = bytes.Clone(rest)
		if text, ok := bytes.CutPrefix(line, []byte("say ")); ok {
			halves = append(halves, encodeHalf(p.flow, string(text)))
		}
		p.opaque = p.opaque || string(line) == "secret"
	}
}

func (p *lineParser) Gap()         { p.rest, p.gaps = nil, p.gaps+1 }
func (p *lineParser) Opaque() bool { return p.opaque }

// halfOf is a server's half for tests.
func halfOf(flow session.Key, text string) inspect.Half {
	return inspect.Half{Protocol: inspect.RTSP, Side: inspect.Server, Flow: flow, Session: text}
}

func encodeHalf(flow session.Key, text string) []byte {
	h := halfOf(flow, text)
	b, err := h.Append(nil)
	if err != nil {
		return []byte(err.Error())
	}
	return b
}

// textOf is what encodeHalf was given.
func textOf(encoded []byte) string {
	h, err := inspect.Decode(encoded)
	if err != nil {
		return err.Error()
	}
	return h.Session
}

func TestReadFrame(t *testing.T) {
	udp4, udp6 := over(unix.IPPROTO_UDP, datagrams, flow4()), over(unix.IPPROTO_UDP, datagrams, flow6())
	fragment := frameOf(t, flow4(), part{text: "x"})
	fragment[14+6] = 0x20
	for _, tt := range []struct {
		name  string
		frame []byte
		flow  session.Key // zero: not read
		text  string
	}{
		{"TCP over IPv4", frameOf(t, flow4(), part{seq: 5, text: "hello"}), flow4(), "hello"},
		{"TCP over IPv6", frameOf(t, flow6(), part{seq: 5, text: "hello"}), flow6(), "hello"},
		{"UDP over IPv4", frameOf(t, udp4, part{text: "hello"}), udp4, "hello"},
		{"UDP over IPv6", frameOf(t, udp6, part{text: "hello"}), udp6, "hello"},
		{"padded to the Ethernet minimum", append(frameOf(t, flow4(), part{text: "hi"}), 0, 0, 0, 0), flow4(), "hi"},
		{"fragment", fragment, session.Key{}, ""},
		{"cut off", frameOf(t, flow4(), part{})[:40], session.Key{}, ""},
		{"ARP", append(bytes.Repeat([]byte{1}, 12), 8, 6, 0, 1), session.Key{}, ""},
		{"nothing", nil, session.Key{}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, ok := newFrameReader().read(tt.frame)
			if ok != (tt.flow != session.Key{}) {
				t.Fatalf("read: %v", ok)
			}
			if ok && (p.flow != tt.flow || string(p.payload) != tt.text) {
				t.Errorf("flow %v, payload %q", p.flow, p.payload)
			}
		})
	}
}
