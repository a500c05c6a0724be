// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Program verdicts, as in /bpf/kernel.h.
const (
	verdictNext     = ^uint32(0)
	verdictDrop     = 2
	verdictRedirect = 7
)

// sk is the part of struct __sk_buff that BPF_PROG_RUN lets a test set.
type sk struct {
	Len, PacketType, Mark, Queue, Protocol, VLANPresent, VLANTCI, VLANProto, Priority, IngressIfindex, Ifindex uint32
}

// execute runs a program over a frame as if the router's interface had received it.
func (r *rig) execute(t testing.TB, p *ebpf.Program, frame []byte, mark uint32) (uint32, []byte) {
	t.Helper()
	l, err := r.router.Link()
	if err != nil {
		t.Fatal(err)
	}
	var verdict uint32
	out := make([]byte, len(frame)+256)
	options := &ebpf.RunOptions{Data: frame, DataOut: out, Context: sk{Ifindex: uint32(l.Index), Mark: mark}}
	if err := r.router.Do(func() (err error) {
		verdict, err = p.Run(options)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return verdict, options.DataOut
}

// from sets a frame's link-layer addresses.
func from(src, dst net.HardwareAddr, frame []byte) []byte {
	return slices.Concat(dst, src, frame[12:])
}

func patch(b []byte, at int, v byte) []byte {
	b = slices.Clone(b)
	b[at] = v
	return b
}

func TestDivert(t *testing.T) {
	r := newRig(t)
	g := r.open(t, r.config(t))
	if err := g.divert.beat(); err != nil {
		t.Fatal(err)
	}
	router, server, front, stranger := macOf(t, r.router), macOf(t, r.b1), net.HardwareAddr{2, 0, 0, 0, 0, 0x99}, macOf(t, r.b2)
	client4, client6 := netip.MustParseAddrPort("10.78.0.1:40000"), netip.MustParseAddrPort("[fd78::1]:40000")
	key := func(protocol uint8, port uint16, v6 bool) (k [1]func(p part) []byte) {
		flow := flow4()
		flow.Client, flow.Server, flow.Protocol = client4, netip.AddrPortFrom(r.vip4, port), protocol
		if v6 {
			flow.Client, flow.Server = client6, netip.AddrPortFrom(r.vip6, port)
		}
		k[0] = func(p part) []byte { return frameOf(t, flow, p) }
		return k
	}
	tcp4, tcp6 := key(unix.IPPROTO_TCP, signalPort, false)[0], key(unix.IPPROTO_TCP, signalPort, true)[0]
	udp4, udp6 := key(unix.IPPROTO_UDP, datagrams, false)[0], key(unix.IPPROTO_UDP, datagrams, true)[0]
	data := part{seq: 1, text: "RTSP/1.0 200 OK"}
	options := func(frame []byte) []byte { // four bytes of IPv4 options
		f := slices.Concat(patch(frame, 14, 0x46)[:34], []byte{1, 1, 1, 0}, frame[34:])
		return patch(f, 14+3, frame[14+3]+4)
	}
	for _, tt := range []struct {
		name    string
		frame   []byte
		verdict uint32
		counted func(Stats) uint64
	}{
		{"TCP over IPv4", from(server, router, tcp4(data)), verdictRedirect, func(s Stats) uint64 { return s.Diverted }},
		{"TCP over IPv6", from(server, router, tcp6(data)), verdictRedirect, func(s Stats) uint64 { return s.Diverted }},
		{"UDP over IPv4", from(server, router, udp4(data)), verdictRedirect, func(s Stats) uint64 { return s.Diverted }},
		{"UDP over IPv6", from(server, router, udp6(data)), verdictRedirect, func(s Stats) uint64 { return s.Diverted }},
		{"SYN", from(server, router, tcp4(part{syn: true})), verdictRedirect, nil},
		{"FIN", from(server, router, tcp4(part{fin: true})), verdictRedirect, nil},
		{"RST", from(server, router, tcp4(part{rst: true})), verdictRedirect, nil},
		{"IPv4 options", from(server, router, options(tcp4(data))), verdictRedirect, nil},
		{"padded", append(from(server, router, udp4(part{})), 0, 0, 0, 0), verdictRedirect, nil},
		{"bare acknowledgement", from(server, router, tcp4(part{seq: 1})), verdictNext, nil},
		{"padded bare acknowledgement", append(from(server, router, tcp4(part{seq: 1})), 0, 0, 0, 0, 0, 0), verdictNext, nil},
		{"another port", from(server, router, key(unix.IPPROTO_TCP, 80, false)[0](data)), verdictNext, nil},
		{"UDP at a TCP service's port", from(server, router, key(unix.IPPROTO_UDP, signalPort, false)[0](data)), verdictNext, nil},
		{"TCP of a service on both", from(server, router, key(unix.IPPROTO_TCP, datagrams, false)[0](data)), verdictRedirect, nil},
		{"the dispatcher's", from(front, router, tcp4(data)), verdictNext, nil},
		{"a stranger's", from(stranger, router, tcp4(data)), verdictDrop, func(s Stats) uint64 { return s.Refused }},
		{"a stranger's datagram", from(stranger, router, udp6(data)), verdictDrop, func(s Stats) uint64 { return s.Refused }},
		{"a stranger's acknowledgement", from(stranger, router, tcp4(part{seq: 1})), verdictDrop, nil},
		{"a stranger's of another port", from(stranger, router, key(unix.IPPROTO_TCP, 80, false)[0](data)), verdictNext, nil},
		{"to another host", from(server, stranger, tcp4(data)), verdictNext, nil},
		{"first fragment", patch(from(server, router, udp4(data)), 14+6, 0x20), verdictNext, func(s Stats) uint64 { return s.Fragments }},
		{"later fragment", patch(from(server, router, udp4(data)), 14+7, 0x10), verdictNext, nil},
		{"longer than the frame", patch(from(server, router, tcp4(data)), 14+3, 200), verdictNext, nil},
		{"TCP header of 16 bytes", patch(from(server, router, tcp4(data)), 14+20+12, 4<<4), verdictNext, nil},
		{"TCP header beyond the packet", patch(from(server, router, tcp4(part{seq: 1})), 14+20+12, 15<<4), verdictNext, nil},
		{"IP header of 16 bytes", patch(from(server, router, tcp4(data)), 14, 0x44), verdictNext, nil},
		{"IPv6 with an extension header", patch(from(server, router, tcp6(data)), 14+6, 0), verdictNext, nil},
		{"IPv6, longer than the frame", patch(from(server, router, tcp6(data)), 14+4, 4), verdictNext, nil},
		{"VLAN tag", slices.Concat(router, server, []byte{0x81, 0, 0, 5, 8, 0}, tcp4(data)[14:]), verdictNext, nil},
		{"runt", from(server, router, tcp4(data))[:34], verdictNext, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := g.Stats()
			verdict, out := r.execute(t, g.divert.objects.RehomeGateway, tt.frame, 0)
			if verdict != tt.verdict || !bytes.Equal(out, tt.frame) {
				t.Errorf("verdict %d, want %d; changed: %v", verdict, tt.verdict, !bytes.Equal(out, tt.frame))
			}
			if tt.counted != nil && tt.counted(g.Stats()) != tt.counted(before)+1 {
				t.Errorf("not counted: %+v", g.Stats())
			}
			// What was released goes on, whatever it is.
			if verdict, _ := r.execute(t, g.divert.objects.RehomeGateway, tt.frame, 0x72686777); verdict != verdictNext {
				t.Errorf("released: verdict %d", verdict)
			}
		})
	}
}

// A process that does not read diverts nothing, and refuses nothing.
func TestDivertHeartbeat(t *testing.T) {
	r := newRig(t)
	g := r.open(t, r.config(t))
	flow := flow4()
	flow.Server = netip.AddrPortFrom(r.vip4, signalPort)
	frame := from(macOf(t, r.b1), macOf(t, r.router), frameOf(t, flow, part{text: "x"}))
	verdict := func() uint32 {
		v, _ := r.execute(t, g.divert.objects.RehomeGateway, frame, 0)
		return v
	}
	if v := verdict(); v != verdictNext {
		t.Errorf("before the first beat: verdict %d", v)
	}
	if err := g.divert.beat(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if v := verdict(); v != verdictRedirect && time.Since(began) < beatLimit {
		t.Errorf("after a beat: verdict %d", v)
	}
	eventually(t, "diverting ends by itself", func() bool { return verdict() == verdictNext })
	if d := time.Since(began); d < beatLimit/2 || d > 10*beatLimit {
		t.Errorf("it did so after %v, want about %v", d, beatLimit)
	}
	if g.Stats().Lapsed < 2 {
		t.Errorf("%+v", g.Stats())
	}
}

func TestDivertLearns(t *testing.T) {
	r := newRig(t)
	c := r.config(t)
	c.Servers[0].MAC = ""
	g := r.open(t, c)
	flow := flow4()
	flow.Server = netip.AddrPortFrom(r.vip4, signalPort)
	frame := func(mac net.HardwareAddr) []byte {
		return from(mac, macOf(t, r.router), frameOf(t, flow, part{text: "x"}))
	}
	want := func(what string, mac net.HardwareAddr, want uint32) {
		t.Helper()
		if err := g.divert.beat(); err != nil {
			t.Fatal(err)
		}
		if v, _ := r.execute(t, g.divert.objects.RehomeGateway, frame(mac), 0); v != want {
			t.Errorf("%s: verdict %d, want %d", what, v, want)
		}
	}
	one, two, other := net.HardwareAddr{2, 0, 0, 0, 0, 1}, net.HardwareAddr{2, 0, 0, 0, 0, 2}, macOf(t, r.b2)
	want("nobody is known", one, verdictNext)
	if g.Stats().Unverified != 1 {
		t.Errorf("%+v", g.Stats())
	}
	for _, mac := range []net.HardwareAddr{one, two} {
		if err := g.divert.learned("b1", mac); err != nil {
			t.Fatal(err)
		}
		want("known", mac, verdictRedirect)
		want("a stranger", other, verdictDrop)
	}
	want("its former address", one, verdictDrop)
	flow.Client = netip.MustParseAddrPort("10.78.0.1:40000")
	if err := g.divert.exempt(flow); err != nil {
		t.Fatal(err)
	}
	want("exempt", two, verdictNext)
	syn := from(two, macOf(t, r.router), frameOf(t, flow, part{syn: true}))
	if v, _ := r.execute(t, g.divert.objects.RehomeGateway, syn, 0); v != verdictRedirect {
		t.Errorf("SYN of an exempt flow: verdict %d", v)
	}
	if err := g.divert.resume(flow); err != nil {
		t.Fatal(err)
	}
	want("read again", two, verdictRedirect)
}

// Nothing comes back through the tap but what came out of it.
func TestTapRefusesForeignFrames(t *testing.T) {
	r := newRig(t)
	g := r.open(t, r.config(t))
	frame := from(macOf(t, r.b1), macOf(t, r.router), frameOf(t, flow4(), part{text: "x"}))
	if v, _ := r.execute(t, g.divert.objects.RehomeGwBack, frame, 0); v != verdictDrop {
		t.Errorf("at an interface that is no tap: verdict %d", v)
	}
}

func TestOpenRefuses(t *testing.T) {
	r := newRig(t)
	r.open(t, r.config(t))
	err := r.router.Do(func() error {
		g, err := Open(r.config(t), newLineParser, nil)
		if err == nil {
			return g.Close()
		}
		return err
	})
	if !errors.Is(err, ErrAttached) {
		t.Errorf("two gateways on one interface: %v", err)
	}
	bad := r.config(t)
	bad.Interfaces = []string{"nowhere"}
	if err := r.router.Do(func() error {
		_, err := Open(bad, newLineParser, nil)
		return err
	}); err == nil {
		t.Error("an interface that does not exist")
	}
	if _, err := Open(Config{}, newLineParser, nil); err == nil {
		t.Error("an empty configuration")
	}
}
