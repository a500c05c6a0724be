// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"bytes"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"
	"github.com/pion/rtp"
)

// recorded makes a pcap file of media.
type recorded struct {
	t    *testing.T
	file bytes.Buffer
	w    *pcapgo.Writer
	at   time.Time
}

func newRecorded(t *testing.T) *recorded {
	t.Helper()
	r := &recorded{t: t, at: time.Unix(1000, 0)}
	r.w = pcapgo.NewWriterNanos(&r.file)
	if err := r.w.WriteFileHeader(mediaSnap, layers.LinkTypeEthernet); err != nil {
		t.Fatal(err)
	}
	return r
}

// packet adds a datagram 20 ms after the last; its end is cut off, as in a capture.
func (r *recorded) packet(from, to string, payload []byte) {
	r.t.Helper()
	a, b := netip.MustParseAddrPort(from), netip.MustParseAddrPort(to)
	ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolUDP, SrcIP: net.IP(a.Addr().AsSlice()), DstIP: net.IP(b.Addr().AsSlice())}
	udp := &layers.UDP{SrcPort: layers.UDPPort(a.Port()), DstPort: layers.UDPPort(b.Port())}
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	out := gopacket.NewSerializeBuffer()
	err := gopacket.SerializeLayers(out, gopacket.SerializeOptions{FixLengths: true},
		&layers.Ethernet{SrcMAC: mac, DstMAC: mac, EthernetType: layers.EthernetTypeIPv4}, ip, udp, gopacket.Payload(payload))
	if err != nil {
		r.t.Fatal(err)
	}
	r.at = r.at.Add(20 * time.Millisecond)
	frame := out.Bytes()
	cut := frame[:min(len(frame), mediaSnap)]
	if err := r.w.WritePacket(gopacket.CaptureInfo{Timestamp: r.at, CaptureLength: len(cut), Length: len(frame)}, cut); err != nil {
		r.t.Fatal(err)
	}
}

// media is a packet of a stream.
func media(sequence uint16, timestamp, ssrc uint32) []byte {
	b, _ := (&rtp.Packet{Header: rtp.Header{Version: 2, SequenceNumber: sequence, Timestamp: timestamp, SSRC: ssrc}, Payload: make([]byte, 160)}).Marshal()
	return b
}

// TestTallyStreams counts what is lost, late, and begun anew, in each stream.
func TestTallyStreams(t *testing.T) {
	const client, vip = "10.78.0.1:", "10.77.0.100:"
	r := newRecorded(t)
	for _, sequence := range []uint16{65534, 65535, 0, 3, 2, 4} { // 1 is missing, 2 comes late
		r.packet(vip+"8000", client+"40000", media(sequence, uint32(int16(sequence))*160, 7))
		r.packet(vip+"8002", client+"40002", media(sequence+100, 0, uint32(sequence))) // neither time nor source go on
	}
	for range 3 {
		r.packet(client+"40000", vip+"8000", media(1, 0, 1))
		r.packet(client+"40001", vip+"8001", []byte{0x80, 201, 0, 1, 0, 0, 0, 0})
	}
	r.packet(client+"40000", vip+"8000", []byte{0})             // opens a path through a firewall
	r.packet("10.77.0.11:8000", client+"40000", media(9, 0, 7)) // not the service's
	got, err := tallyStreams(&r.file, netip.MustParseAddr("10.77.0.100"))
	if err != nil {
		t.Fatal(err)
	}
	want := streamTally{heard: 12, missing: 2, late: 2, restarts: 4, longest: 80 * time.Millisecond, sentRTP: 3, sentRTCP: 3, sent: map[netip.AddrPort]int{netip.MustParseAddrPort(client + "40000"): 3}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(streamTally{}), cmpopts.EquateComparable(netip.AddrPort{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
