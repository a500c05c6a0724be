// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/rehome-net/rehome/dispatcher/session"
	"github.com/rehome-net/rehome/dispatcher/session/inspect"
)

// reply is what a server says, in the lines of its protocol.
func reply(lines ...string) string { return strings.Join(lines, "\r\n") + "\r\n" }

var (
	rtspReply = reply("RTSP/1.0 200 OK", "CSeq: 3", "Session: 4711;timeout=60",
		"Transport: RTP/AVP;unicast;client_port=40000-40001;server_port=8000-8001", "")
	sdp      = reply("v=0", "o=- 1 1 IN IP4 192.0.2.1", "s=-", "c=IN IP4 192.0.2.1", "t=0 0", "m=audio 6000 RTP/AVP 0")
	sipReply = reply("SIP/2.0 200 OK", "Via: SIP/2.0/UDP 198.51.100.7:40000;branch=z9hG4bK1", "From: <sip:a@x>;tag=1", "To: <sip:b@x>;tag=2",
		"Call-ID: call", "CSeq: 1 INVITE", "Contact: <sip:b@192.0.2.1>", "Content-Type: application/sdp", "Content-Length: 87", "") + sdp
	ftpReply = reply("227 Entering Passive Mode (192,0,2,1,78,32)")
)

// TestSignalling has the watch read what servers say, from the beginning and in the middle of a connection.
func TestSignalling(t *testing.T) {
	if n := len(sdp); n != 87 {
		t.Fatalf("the session description has %d bytes: change Content-Length", n)
	}
	for _, tt := range []struct {
		name string
		mode Mode
		port uint16
		udp  bool
		text string
		rtp  uint16
	}{
		{"RTSP", ModeRTSP, 554, false, rtspReply, 8000},
		{"SIP over TCP", ModeSIP, 5060, false, sipReply, 6000},
		{"SIP over UDP", ModeSIP, 5060, true, sipReply, 6000},
		{"FTP", ModeFTP, 21, false, ftpReply, 20000},
	} {
		for _, middle := range []bool{false, true} {
			t.Run(tt.name, func(t *testing.T) {
				flow := over(protocolTCP, tt.port, flow4())
				if tt.udp {
					flow.Protocol = protocolUDP
				}
				w := newWatch(limits{hold: time.Second, frames: 9, bytes: 1 << 20, flows: 9}, func(session.Key) (Mode, bool) { return tt.mode, true }, Signalling)
				now, seq := time.Unix(1000, 0), uint32(100)
				if !middle {
					w.frame(now, 0, frameOf(t, flow, part{seq: seq, syn: true}))
					seq++
				}
				for _, text := range []string{tt.text[:10], tt.text[10:]} {
					if tt.udp {
						text = tt.text
					}
					w.frame(now, 0, frameOf(t, flow, part{seq: seq, text: text}))
					seq += uint32(len(text))
				}
				if len(w.reports) == 0 || len(w.reports[0].halves) != 1 {
					t.Fatalf("reports %+v", w.reports)
				}
				h, err := inspect.Decode(w.reports[0].halves[0])
				if err != nil || h.Side != inspect.Server || h.Flow != flow || len(h.Streams) != 1 {
					t.Fatalf("half %+v, %v", h, err)
				}
				if got := h.Streams[0].RTP.Port(); got != tt.rtp {
					t.Errorf("port %d, want %d", got, tt.rtp)
				}
			})
		}
	}
}

func TestSignallingModes(t *testing.T) {
	if Signalling("http", flow4()) != nil {
		t.Error("a parser of HTTP")
	}
	tls := Signalling(ModeFTP, over(protocolTCP, 21, flow4()))
	tls.Parse([]byte(reply("234 AUTH TLS successful")))
	tls.Parse([]byte{0x16, 3, 3, 0, 4, 2, 0, 0, 0})
	if !tls.Opaque() {
		t.Error("TLS is not seen")
	}
}

// FuzzSignalling gives the parsers whatever a server may send, in two pieces with a gap.
func FuzzSignalling(f *testing.F) {
	for _, text := range []string{rtspReply, sipReply, ftpReply, "$\x00\x00\x04abcd" + rtspReply} {
		f.Add(uint8(0), []byte(text), []byte(text))
	}
	flow := flow4()
	flow.Server = netip.MustParseAddrPort("192.0.2.1:5060")
	f.Fuzz(func(t *testing.T, which uint8, one, two []byte) {
		mode := []Mode{ModeRTSP, ModeSIP, ModeFTP}[which%3]
		flow := flow
		if which&4 != 0 {
			flow.Protocol = protocolUDP
		}
		p := Signalling(mode, flow)
		halves := p.Parse(one)
		p.Gap()
		for _, encoded := range append(halves, p.Parse(two)...) {
			if h, err := inspect.Decode(encoded); err != nil || h.Side != inspect.Server || h.Flow != flow {
				t.Fatalf("half %+v: %v", h, err)
			}
		}
	})
}
