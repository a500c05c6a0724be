// SPDX-License-Identifier: Apache-2.0

package synproxy

import (
	"encoding/binary"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/handoff/cookie"
	netnslab "github.com/rehome-net/rehome/netns-lab"
	"github.com/rehome-net/rehome/tcprepair"
)

// fake is a client made by hand, at an address that no kernel has: it says exactly what a test wants.
type fake struct {
	t      testing.TB
	fd     int
	index  int
	own    net.HardwareAddr
	server net.HardwareAddr
	addr   netip.Addr
	to     netip.AddrPort
}

// newFake needs a way back: the server's host is told where the address is.
func (r *rig) newFake(t testing.TB, v6 bool) *fake {
	t.Helper()
	f := &fake{t: t, to: r.at(v6), addr: netip.MustParseAddr("10.77.0.200")}
	if v6 {
		f.addr = netip.MustParseAddr("fd77::200")
	}
	at := locate(t, r.client)
	f.index, f.own, f.server = at.index, at.mac, locate(t, r.entry).mac
	for _, h := range append([]*netnslab.Host{r.entry}, r.servers...) {
		if err := h.SetNeighbor(f.addr, f.own); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.client.Do(func() (err error) {
		if f.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		all := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL))
		return unix.Bind(f.fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: f.index})
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(f.fd) })
	return f
}

// segment is what the fake client sends and receives.
type segment struct {
	port         uint16 // of the client
	seq, ack     uint32
	flags        string // of S, A, F, R, P, E, C
	payload      []byte
	window       uint16
	mss          uint16
	scale        int // -1: none
	sack         bool
	timestamps   bool
	tsval, tsecr uint32
}

func (f *fake) flow(port uint16) tcprepair.Flow {
	return tcprepair.NewFlow(f.to, netip.AddrPortFrom(f.addr, port))
}

// frame makes the frame of a segment.
func (f *fake) frame(s segment) []byte {
	tcp := layers.TCP{
		SrcPort: layers.TCPPort(s.port), DstPort: layers.TCPPort(f.to.Port()), Seq: s.seq, Ack: s.ack, Window: 65535,
	}
	for _, c := range s.flags {
		switch c {
		case 'S':
			tcp.SYN = true
		case 'A':
			tcp.ACK = true
		case 'F':
			tcp.FIN = true
		case 'R':
			tcp.RST = true
		case 'P':
			tcp.PSH = true
		case 'E':
			tcp.ECE = true
		case 'C':
			tcp.CWR = true
		}
	}
	add := func(kind layers.TCPOptionKind, data []byte) {
		tcp.Options = append(tcp.Options, layers.TCPOption{OptionType: kind, OptionLength: uint8(2 + len(data)), OptionData: data})
	}
	if s.mss > 0 {
		add(layers.TCPOptionKindMSS, binary.BigEndian.AppendUint16(nil, s.mss))
	}
	if tcp.SYN && s.sack {
		add(layers.TCPOptionKindSACKPermitted, nil)
	}
	if s.timestamps {
		add(layers.TCPOptionKindTimestamps, binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, s.tsval), s.tsecr))
	}
	if tcp.SYN && s.scale >= 0 {
		add(layers.TCPOptionKindWindowScale, []byte{byte(s.scale)})
	}
	eth := layers.Ethernet{SrcMAC: f.own, DstMAC: f.server, EthernetType: layers.EthernetTypeIPv4}
	var network gopacket.SerializableLayer
	if f.addr.Is4() {
		ip := &layers.IPv4{Version: 4, IHL: 5, TTL: 64, Protocol: layers.IPProtocolTCP, SrcIP: f.addr.AsSlice(), DstIP: f.to.Addr().AsSlice()}
		_ = tcp.SetNetworkLayerForChecksum(ip)
		network = ip
	} else {
		ip := &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: layers.IPProtocolTCP, SrcIP: f.addr.AsSlice(), DstIP: f.to.Addr().AsSlice()}
		_ = tcp.SetNetworkLayerForChecksum(ip)
		network, eth.EthernetType = ip, layers.EthernetTypeIPv6
	}
	b := gopacket.NewSerializeBuffer()
	err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, &eth, network, &tcp, gopacket.Payload(s.payload))
	if err != nil {
		f.t.Fatal(err)
	}
	return b.Bytes()
}

func (f *fake) send(segments ...segment) {
	f.t.Helper()
	for _, s := range segments {
		f.sendFrame(f.frame(s))
	}
}

func (f *fake) sendFrame(b []byte) {
	f.t.Helper()
	if err := unix.Sendto(f.fd, b, 0, &unix.SockaddrLinklayer{Ifindex: f.index}); err != nil {
		f.t.Fatal(err)
	}
}

// receive waits for a segment to a port of the client's that fulfils a condition.
func (f *fake) receive(what string, port uint16, ok func(segment) bool) segment {
	f.t.Helper()
	s, found := f.tryReceive(patience, port, ok)
	if !found {
		f.t.Fatalf("not within %v: %s", patience, what)
	}
	return s
}

func (f *fake) tryReceive(limit time.Duration, port uint16, ok func(segment) bool) (segment, bool) {
	f.t.Helper()
	buf := make([]byte, 1<<16)
	for end := time.Now().Add(limit); time.Now().Before(end); {
		tv := unix.NsecToTimeval(int64(max(time.Until(end), time.Millisecond)))
		if err := unix.SetsockoptTimeval(f.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
			f.t.Fatal(err)
		}
		n, from, err := unix.Recvfrom(f.fd, buf, 0)
		if err == unix.EINTR || err == unix.EAGAIN {
			continue
		}
		if err != nil {
			f.t.Fatal(err)
		}
		if from.(*unix.SockaddrLinklayer).Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		if s, found := f.parse(buf[:n]); found && s.port == port && ok(s) {
			return s, true
		}
	}
	return segment{}, false
}

// parse checks checksums, too.
func (f *fake) parse(b []byte) (segment, bool) {
	p := gopacket.NewPacket(b, layers.LayerTypeEthernet, gopacket.DecodeOptions{})
	tcp, ok := p.Layer(layers.LayerTypeTCP).(*layers.TCP)
	if !ok || uint16(tcp.SrcPort) != f.to.Port() {
		return segment{}, false
	}
	s := segment{
		port: uint16(tcp.DstPort), seq: tcp.Seq, ack: tcp.Ack, payload: append([]byte(nil), tcp.Payload...), window: tcp.Window, scale: -1,
	}
	for _, c := range []struct {
		on   bool
		name string
	}{{tcp.SYN, "S"}, {tcp.ACK, "A"}, {tcp.FIN, "F"}, {tcp.RST, "R"}, {tcp.ECE, "E"}, {tcp.CWR, "C"}} {
		if c.on {
			s.flags += c.name
		}
	}
	for _, o := range tcp.Options {
		switch o.OptionType {
		case layers.TCPOptionKindMSS:
			s.mss = binary.BigEndian.Uint16(o.OptionData)
		case layers.TCPOptionKindWindowScale:
			s.scale = int(o.OptionData[0])
		case layers.TCPOptionKindSACKPermitted:
			s.sack = true
		case layers.TCPOptionKindTimestamps:
			s.timestamps, s.tsval, s.tsecr = true, binary.BigEndian.Uint32(o.OptionData), binary.BigEndian.Uint32(o.OptionData[4:])
		}
	}
	return s, true
}

// checksumOf tells whether a received frame's TCP checksum is right, when it was complete on the wire.
func synOf(port uint16, seq uint32) segment {
	return segment{port: port, seq: seq, flags: "S", mss: 1460, sack: true, timestamps: true, tsval: 1000, scale: 7}
}

// shake sends a SYN and returns the answer.
func (f *fake) shake(syn segment) segment {
	f.t.Helper()
	f.send(syn)
	return f.receive("answer to SYN", syn.port, func(s segment) bool { return s.flags == "SA" || s.flags == "SAE" })
}

// data is the client's next segment after a handshake.
func data(syn, answer segment, from int, payload []byte, flags string) segment {
	return segment{
		port: syn.port, seq: syn.seq + 1 + uint32(from), ack: answer.seq + 1, flags: flags, payload: payload,
		timestamps: syn.timestamps, tsval: syn.tsval + 1, tsecr: answer.tsval, scale: -1,
	}
}

func bare(syn, answer segment) segment { return data(syn, answer, 0, nil, "A") }

// recall is package cookie's own opinion of a first packet.
func (f *fake) recall(s segment, secret cookie.Secret) (cookie.Offer, bool) {
	return cookie.Recall(f.flow(s.port), cookie.Echo{
		Sequence: s.seq, Acknowledgement: s.ack, Timestamps: s.timestamps, Timestamp: s.tsecr,
	}, time.Now(), secret)
}
