// SPDX-License-Identifier: Apache-2.0

package synproxy

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/rehome-net/rehome/handoff/cookie"
	"github.com/rehome-net/rehome/tcprepair"
)

// recordOf makes a record as the program does, of a frame with a right checksum.
func recordOf(t testing.TB, v6 bool, payload string) ([]byte, []byte) {
	t.Helper()
	f := &fake{
		t: t, own: []byte{2, 0, 0, 0, 0, 1}, server: []byte{2, 0, 0, 0, 0, 2},
		addr: netip.MustParseAddr("192.0.2.1"), to: netip.MustParseAddrPort("198.51.100.1:80"),
	}
	at := 34
	if v6 {
		f.addr, f.to, at = netip.MustParseAddr("2001:db8::1"), netip.MustParseAddrPort("[2001:db8::2]:80"), 54
	}
	frame := f.frame(segment{port: 999, seq: 11, ack: 22, flags: "PA", payload: []byte(payload), timestamps: true, tsval: 33, tsecr: 44, scale: -1})
	frame = append(frame, make([]byte, max(0, 60-len(frame)))...) // as Ethernet has it
	b := make([]byte, recordSize, recordSize+len(frame))
	cookie.AppendFlow(b[:0], tcprepair.NewFlow(f.to, netip.AddrPortFrom(f.addr, 999)))
	for place, v := range map[int]int{
		recordCookie: 21, recordISN: 10, recordLength: len(frame), recordAt: at, recordHeader: 32, recordPayload: len(payload),
		recordSeq: 11, recordAck: 22, recordTSVal: 33, recordTSEcr: 44, recordDistance: 55, recordAge: 1,
	} {
		binary.NativeEndian.PutUint32(b[place:], uint32(v))
	}
	b[recordFlags], b[recordTimestamps] = flagACK|flagPSH, 1
	return append(b, frame...), frame
}

func TestDecodePacket(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		for _, payload := range []string{"x", "hello", "a longer payload, of an odd number of bytes"} {
			b, frame := recordOf(t, v6, payload)
			p, err := decodePacket(b)
			if err != nil {
				t.Fatal(err)
			}
			if string(p.payload) != payload || p.seq != 11 || p.ack != 22 || p.tsval != 33 || p.tsecr != 44 || p.distance != 55 || p.age != 1 || p.fin || p.rst {
				t.Errorf("%+v", p)
			}
			if p.window(2) != 4*65535 {
				t.Errorf("window %d", p.window(2))
			}
			if !bytes.Equal(p.frame[vnetSize:vnetSize+p.at], frame[:p.at]) {
				t.Error("headers differ from what arrived")
			}
			// Damaged anywhere in the segment, it is not taken.
			for i := p.at; i < p.at+32+len(payload); i++ {
				broken := bytes.Clone(b)
				broken[recordSize+i] ^= 4
				if _, err := decodePacket(broken); !errors.Is(err, errChecksum) {
					t.Fatalf("byte %d changed: %v", i, err)
				}
			}
			// What has left its checksum to the device is.
			partial := bytes.Clone(b)
			copy(partial[recordSize+p.at+tcpChecksum:], p.frame[vnetSize+p.at+tcpChecksum:][:2])
			if _, err := decodePacket(partial); err != nil {
				t.Error(err)
			}
		}
	}
}

func FuzzDecodePacket(f *testing.F) {
	for _, v6 := range []bool{false, true} {
		b, _ := recordOf(f, v6, "payload")
		f.Add(b)
		f.Add(b[:recordSize])
		f.Add(b[:50])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := decodePacket(b)
		if err != nil {
			return
		}
		if len(p.payload) > len(b) || vnetSize+p.at+20 > len(p.frame) || !p.flow.Local.IsValid() {
			t.Errorf("%+v", p)
		}
		_ = p.abort(1)
		_ = appendReply(nil, p, reply{payload: []byte("x")})
	})
}

// finish fills in the checksum as a device would.
func finish(t *testing.T, frame []byte) gopacket.Packet {
	t.Helper()
	start, offset := int(binary.NativeEndian.Uint16(frame[6:])), int(binary.NativeEndian.Uint16(frame[8:]))
	b := bytes.Clone(frame[vnetSize:])
	binary.BigEndian.PutUint16(b[start+offset:], ^fold(sum(b[start:])))
	return gopacket.NewPacket(b, layers.LayerTypeEthernet, gopacket.Default)
}

// The checksums that the device completes are those that gopacket finds right.
func TestFrames(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		b, _ := recordOf(t, v6, "the payload")
		p, err := decodePacket(b)
		if err != nil {
			t.Fatal(err)
		}
		for name, c := range map[string]struct {
			frame    []byte
			toServer bool
			seq, ack uint32
			payload  string
		}{
			"forwarded": {p.frame, true, 11, 22, "the payload"},
			"aborted":   {p.abort(77).frame, true, 77, 22, ""},
			"answered":  {appendReply(nil, p, reply{seq: 5, ack: 6, flags: flagACK | flagFIN, payload: []byte("bytes")}), false, 5, 6, "bytes"},
		} {
			decoded := finish(t, c.frame)
			tcp, ok := decoded.Layer(layers.LayerTypeTCP).(*layers.TCP)
			if !ok {
				t.Fatalf("%s: %v", name, decoded)
			}
			if mismatches := checksums(t, decoded); mismatches != 0 {
				t.Errorf("%s: %d checksums are wrong: %v", name, mismatches, decoded)
			}
			if tcp.Seq != c.seq || tcp.Ack != c.ack || string(tcp.Payload) != c.payload || (tcp.SrcPort == 999) != c.toServer {
				t.Errorf("%s: %v", name, decoded)
			}
		}
	}
}

// checksums counts wrong ones: gopacket makes the packet anew, and both must be the same.
func checksums(t *testing.T, p gopacket.Packet) int {
	t.Helper()
	wrong := 0
	tcp := *p.Layer(layers.LayerTypeTCP).(*layers.TCP)
	was := tcp.Checksum
	_ = tcp.SetNetworkLayerForChecksum(p.NetworkLayer())
	again := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(again, gopacket.SerializeOptions{ComputeChecksums: true, FixLengths: true}, &tcp, gopacket.Payload(tcp.Payload)); err != nil {
		t.Fatal(err)
	}
	if tcp.Checksum != was {
		wrong++
	}
	if ip, ok := p.NetworkLayer().(*layers.IPv4); ok {
		same := *ip
		if err := gopacket.SerializeLayers(again, gopacket.SerializeOptions{ComputeChecksums: true}, &same); err != nil {
			t.Fatal(err)
		}
		if same.Checksum != ip.Checksum {
			wrong++
		}
	}
	return wrong
}
