// SPDX-License-Identifier: Apache-2.0

package reqsk

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/rehome-net/rehome/tcprepair"
)

func flow4() tcprepair.Flow {
	return tcprepair.NewFlow(netip.MustParseAddrPort("198.51.100.1:80"), netip.MustParseAddrPort("192.0.2.7:40312"))
}

func flow6() tcprepair.Flow {
	return tcprepair.NewFlow(netip.MustParseAddrPort("[2001:db8::1]:80"), netip.MustParseAddrPort("[2001:db8::7]:40312"))
}

// parsed is what somebody else's parser finds in a frame.
type parsed struct {
	Source, Destination string
	SourcePort          uint16
	DestinationPort     uint16
	Hops                uint8
	Seq, Ack            uint32
	Flags               string
	Window              uint16
	Timestamps          string
	Payload             string
}

func parse(t testing.TB, frame []byte) parsed {
	t.Helper()
	first := gopacket.LayerType(layers.LayerTypeIPv4)
	if frame[offloadHeader]>>4 == 6 {
		first = layers.LayerTypeIPv6
	}
	packet := gopacket.NewPacket(frame[offloadHeader:], first, gopacket.NoCopy)
	if e := packet.ErrorLayer(); e != nil {
		t.Fatalf("%v in %x", e.Error(), frame)
	}
	var p parsed
	var length int
	switch ip := packet.NetworkLayer().(type) {
	case *layers.IPv4:
		p.Source, p.Destination, p.Hops = ip.SrcIP.String(), ip.DstIP.String(), ip.TTL
		length = int(ip.Length)
		if s := fold(sum(0, ip.Contents)); s != 1<<16-1 {
			t.Errorf("IPv4 header sums up to %#x", s)
		}
	case *layers.IPv6:
		p.Source, p.Destination, p.Hops = ip.SrcIP.String(), ip.DstIP.String(), ip.HopLimit
		length = int(ip.Length) + ipv6Header
	}
	if length != len(frame)-offloadHeader {
		t.Errorf("length %d of %d", length, len(frame)-offloadHeader)
	}
	tcp := packet.TransportLayer().(*layers.TCP)
	p.SourcePort, p.DestinationPort = uint16(tcp.SrcPort), uint16(tcp.DstPort)
	p.Seq, p.Ack, p.Window, p.Payload = tcp.Seq, tcp.Ack, tcp.Window, string(tcp.Payload)
	for _, f := range []struct {
		on   bool
		name string
	}{{tcp.SYN, "S"}, {tcp.FIN, "F"}, {tcp.RST, "R"}, {tcp.PSH, "P"}, {tcp.ACK, "A"}} {
		if f.on {
			p.Flags += f.name
		}
	}
	for _, o := range tcp.Options {
		if o.OptionType == layers.TCPOptionKindTimestamps {
			p.Timestamps = ticks(o.OptionData)
		}
	}
	return p
}

func ticks(b []byte) string {
	return time.Duration(binary.BigEndian.Uint32(b)).String() + " " + time.Duration(binary.BigEndian.Uint32(b[4:])).String()
}

func TestFrame(t *testing.T) {
	for _, c := range []struct {
		name     string
		snapshot tcprepair.Snapshot
		want     parsed
	}{
		{
			"IPv4, no options",
			tcprepair.Snapshot{
				Flow: flow4(), State: tcprepair.Established, Negotiated: tcprepair.Negotiated{MSS: 1460},
				SendSeq: 1000, ReceiveSeq: 2000, Received: []byte("GET"), Window: tcprepair.Window{Send: 70000},
			},
			parsed{"192.0.2.7", "198.51.100.1", 40312, 80, 1, 2000, 1000, "PA", 65535, "", "GET"},
		},
		{
			"IPv6, all options, half-closed",
			tcprepair.Snapshot{
				Flow: flow6(), State: tcprepair.CloseWait,
				Negotiated: tcprepair.Negotiated{MSS: 1440, Timestamps: true, SACK: true, WindowScaling: true, SendScale: 7, ReceiveScale: 9},
				Timestamp:  100_000, SendSeq: 0, ReceiveSeq: 1<<32 - 2, Received: []byte("GET"), Window: tcprepair.Window{Send: 64000},
				Advice: tcprepair.Advice{RTT: 20 * time.Millisecond},
			},
			parsed{"2001:db8::7", "2001:db8::1", 40312, 80, 1, 1<<32 - 2, 0, "FPA", 500, "0s 99.98µs", "GET"},
		},
		{
			"nothing but a FIN",
			tcprepair.Snapshot{
				Flow: flow4(), State: tcprepair.CloseWait, Negotiated: tcprepair.Negotiated{MSS: 1460, Timestamps: true},
				Timestamp: 5, SendSeq: 1, ReceiveSeq: 2,
			},
			parsed{"192.0.2.7", "198.51.100.1", 40312, 80, 1, 2, 1, "FA", 0, "0s 0s", ""},
		},
		{
			"scales without scaling",
			tcprepair.Snapshot{
				Flow: flow4(), State: tcprepair.Established, Negotiated: tcprepair.Negotiated{MSS: 1460, SendScale: 7},
				SendSeq: 1, ReceiveSeq: 2, Window: tcprepair.Window{Send: 1000},
			},
			parsed{"192.0.2.7", "198.51.100.1", 40312, 80, 1, 2, 1, "A", 1000, "", ""},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, err := newStream(&c.snapshot)
			if err != nil {
				t.Fatal(err)
			}
			frame := s.appendFrame(nil, s.segment(0, len(s.data)))
			if d := cmp.Diff(c.want, parse(t, frame)); d != "" {
				t.Error(d)
			}
			// The sum of the pseudo header is what a network card goes on from.
			ip, _ := s.headers()
			full := fold(sum(0, pad(frame[offloadHeader+ip:])))
			binary.BigEndian.PutUint16(frame[offloadHeader+ip+16:], ^full)
			pseudo := fold(sum(pseudoSum(s), pad(frame[offloadHeader+ip:])))
			if pseudo != 1<<16-1 {
				t.Errorf("completed checksum sums up to %#x", pseudo)
			}
		})
	}
}

// pseudoSum is the sum of the pseudo header, computed anew.
func pseudoSum(t *stream) uint32 {
	_, tcp := t.headers()
	b := append(t.flow.Remote.Addr().AsSlice(), t.flow.Local.Addr().AsSlice()...)
	return sum(uint32(protocolTCP+tcp+len(t.data)), b)
}

func pad(b []byte) []byte {
	if len(b)%2 == 1 {
		return append(bytes.Clone(b), 0)
	}
	return b
}

func TestOffloadHeader(t *testing.T) {
	for _, c := range []struct {
		name    string
		flow    tcprepair.Flow
		n       tcprepair.Negotiated
		payload int
		want    []byte
	}{
		{"one segment", flow4(), tcprepair.Negotiated{MSS: 1460}, 1460, []byte{1, 0, 40, 0, 0, 0, 20, 0, 16, 0}},
		{"two segments", flow4(), tcprepair.Negotiated{MSS: 1460}, 1461, []byte{1, 1, 40, 0, 0xb4, 5, 20, 0, 16, 0}},
		{"two segments with timestamps", flow4(), tcprepair.Negotiated{MSS: 1460, Timestamps: true}, 1449, []byte{1, 1, 52, 0, 0xa8, 5, 20, 0, 16, 0}},
		{"IPv6", flow6(), tcprepair.Negotiated{MSS: 1440}, 2000, []byte{1, 4, 60, 0, 0xa0, 5, 40, 0, 16, 0}},
	} {
		s, err := newStream(&tcprepair.Snapshot{Flow: c.flow, State: tcprepair.Established, Negotiated: c.n, Received: make([]byte, c.payload)})
		if err != nil {
			t.Fatal(err)
		}
		if got := s.appendFrame(nil, s.segment(0, c.payload))[:offloadHeader]; !bytes.Equal(got, c.want) {
			t.Errorf("%s: % x, want % x", c.name, got, c.want)
		}
	}
}

// Every segment of every snapshot is a whole packet of the stream.
func FuzzFrame(f *testing.F) {
	f.Add(false, true, true, uint16(1460), uint32(1), uint32(2), uint16(300), uint16(100), uint32(70000), uint8(7))
	f.Add(true, false, false, uint16(1440), uint32(1<<32-1), uint32(0), uint16(65000), uint16(0), uint32(0), uint8(14))
	f.Fuzz(func(t *testing.T, six, stamps, fin bool, mss uint16, seq, ack uint32, length, from uint16, window uint32, scale uint8) {
		snap := tcprepair.Snapshot{
			Flow: flow4(), State: tcprepair.Established, ReceiveSeq: seq, SendSeq: ack, Received: make([]byte, length), Timestamp: ack,
			Negotiated: tcprepair.Negotiated{MSS: mss, Timestamps: stamps, WindowScaling: true, SendScale: scale},
			Window:     tcprepair.Window{Send: window}, Advice: tcprepair.Advice{RTT: time.Duration(window) * time.Microsecond},
		}
		if six {
			snap.Flow = flow6()
		}
		if fin {
			snap.State = tcprepair.CloseWait
		}
		for i := range snap.Received {
			snap.Received[i] = byte(i % 251)
		}
		s, err := newStream(&snap)
		if err != nil {
			return
		}
		at := min(int(from), int(length))
		n := min(int(length)-at, s.maxPayload())
		frame := s.appendFrame(nil, s.segment(at, n))
		if len(frame) > maxFrame {
			t.Fatalf("frame of %d bytes", len(frame))
		}
		p := parse(t, frame)
		if p.Seq != seq+uint32(at) || p.Payload != string(snap.Received[at:at+n]) || p.Ack != ack {
			t.Fatalf("%+v", p)
		}
		if last := at+n == int(length); bytes.ContainsRune([]byte(p.Flags), 'F') != (fin && last) {
			t.Fatalf("flags %s, last %v", p.Flags, last)
		}
	})
}
