// SPDX-License-Identifier: Apache-2.0

package sip

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/pion/sdp/v3"

	"github.com/rehome-net/rehome/dispatcher/session/inspect"
	"github.com/rehome-net/rehome/dispatcher/session/inspect/inspecttest"
)

func media(rtp, rtcp string) inspect.Stream {
	return inspect.Stream{Transport: inspect.RTP, RTP: netip.MustParseAddrPort(rtp), RTCP: netip.MustParseAddrPort(rtcp)}
}

// lenient are descriptions that break the grammar as those in the field do.
func lenient() map[string]string {
	return map[string]string{
		"as it should be":   "v=0\r\no=- 1 1 IN IP4 192.0.2.7\r\ns=-\r\nc=IN IP4 192.0.2.7\r\nt=0 0\r\nm=audio 40000 RTP/AVP 0\r\n",
		"line feeds":        "v=0\no=- 1 1 IN IP4 192.0.2.7\ns=-\nc=IN IP4 192.0.2.7\nt=0 0\nm=audio 40000 RTP/AVP 0\n",
		"no last end":       "v=0\r\ns=-\r\nc=IN IP4 192.0.2.7\r\nt=0 0\r\nm=audio 40000 RTP/AVP 0",
		"no origin or time": "v=0\r\nc=IN IP4 192.0.2.7\r\nm=audio 40000 RTP/AVP 0\r\n",
		"an odd origin":     "v=0\r\no=who -1 x y z\r\ns=\r\nc=IN IP4 192.0.2.7\r\nm=audio 40000 RTP/AVP 0\r\n",
		"another order":     "v=0\r\nt=0 0\r\na=sendrecv\r\nc=IN IP4 192.0.2.7\r\ns=-\r\nm=audio 40000 RTP/AVP 0\r\na=b\r\n",
		"its own address":   "v=0\r\nc=IN IP4 10.0.0.1\r\nm=audio 40000 RTP/AVP 0\r\na=rtpmap:0 PCMU/8000\r\nc=IN IP4 192.0.2.7\r\n",
		"spaces":            "v=0\r\nc=IN IP4 192.0.2.7\r\nm=audio  40000  RTP/AVP  0 \r\n",
		"unknown names":     "v=0\r\nc=IN IP4 192.0.2.7/16\r\nm=hologram 40000 RTP/XYZ 0\r\nx=what\r\n",
		"no format":         "v=0\r\nc=IN IP4 192.0.2.7\r\nm=audio 40000 RTP/AVP\r\n",
	}
}

func TestLenient(t *testing.T) {
	want := []inspect.Stream{media("192.0.2.7:40000", "192.0.2.7:40001")}
	for name, text := range lenient() {
		got, ok := describe(typeSDP, []byte(text))
		if d := cmp.Diff(want, got, inspecttest.Comparer()); !ok || d != "" {
			t.Errorf("%s: %v (-want +got):\n%s", name, ok, d)
		}
	}
}

// TestPorts has what one medium says about its ports.
func TestPorts(t *testing.T) {
	ports := func(s inspect.Stream) (uint16, uint16) { return s.RTP.Port(), s.RTCP.Port() }
	for _, c := range []struct {
		medium    string
		rtp, rtcp uint16
		transport inspect.Transport
		mux, open bool
		pairs     uint8
	}{
		{medium: "m=audio 0 RTP/AVP 0", transport: inspect.Rejected},
		{medium: "m=audio 65535 RTP/AVP 0", rtp: 65535, transport: inspect.RTP},
		{medium: "m=audio 9 UDP/TLS/RTP/SAVPF 0", transport: inspect.RTP, open: true},
		{medium: "m=audio 4 RTP/AVP 0\r\na=rtcp:0", rtp: 4, transport: inspect.RTP},
		{medium: "m=audio 4 RTP/AVP 0\r\na=rtcp:", rtp: 4, transport: inspect.RTP},
		{medium: "m=audio 4 RTP/AVP 0\r\na=rtcp:70000", rtp: 4, transport: inspect.RTP},
		{medium: "m=audio 4 RTP/AVP 0\r\na=rtcp:8 IN IP4 203.0.113.1", rtp: 4, rtcp: 8, transport: inspect.RTP},
		{medium: "m=audio 4 RTP/AVP 0\r\na=rtcp-mux", rtp: 4, rtcp: 5, transport: inspect.RTP, mux: true},
		{medium: "m=audio 4 RTP/AVP 0\r\na=rtcp-mux-only", rtp: 4, rtcp: 5, transport: inspect.RTP, mux: true},
		{medium: "m=audio 4 RTP/AVP 0\r\na=rtcp-muxed", rtp: 4, rtcp: 5, transport: inspect.RTP},
		{medium: "m=audio 4/300 RTP/AVP 0", rtp: 4, rtcp: 5, transport: inspect.RTP},
		{medium: "m=image 4 UDPTL t38", rtp: 4, transport: inspect.Datagrams},
		{medium: "m=application 4 UDP/DTLS/SCTP webrtc-datachannel", rtp: 4, transport: inspect.Datagrams},
		{medium: "m=application 4 DTLS/SCTP 5000", rtp: 4, transport: inspect.Datagrams},
		{medium: "m=audio 4 TCP/RTP/AVP 0", rtp: 4, transport: inspect.Unsupported},
		{medium: "m=audio 4/4 RTP/AVP 0", rtp: 4, rtcp: 5, transport: inspect.RTP, pairs: 4},
		{medium: "m=audio 4/5 RTP/AVP 0", rtp: 4, rtcp: 5, transport: inspect.RTP},
		{medium: "m=audio 4/-1 RTP/AVP 0", rtp: 4, rtcp: 5, transport: inspect.RTP},
		{medium: "m=", transport: inspect.Rejected},
	} {
		got, ok := parseSDP([]byte("v=0\r\nc=IN IP4 192.0.2.7\r\n" + c.medium + "\r\n"))
		if !ok || len(got) != 1 {
			t.Errorf("%q: %+v, %v", c.medium, got, ok)
			continue
		}
		rtp, rtcp := ports(got[0])
		if rtp != c.rtp || rtcp != c.rtcp || got[0].Transport != c.transport || got[0].Mux != c.mux || got[0].Open != c.open || got[0].Pairs != c.pairs {
			t.Errorf("%q: %+v", c.medium, got[0])
		}
	}
}

// TestNoAddress has nothing to say where media go but a port.
func TestNoAddress(t *testing.T) {
	for _, text := range []string{"m=audio 4 RTP/AVP 0", "c=IN IP4\r\nm=audio 4 RTP/AVP 0", "c=IN IP4 pc.example.com\r\nm=audio 4 RTP/AVP 0"} {
		got, ok := parseSDP([]byte(text))
		if !ok || len(got) != 1 || got[0].RTP != netip.AddrPortFrom(netip.Addr{}, 4) || got[0].RTCP != netip.AddrPortFrom(netip.Addr{}, 5) {
			t.Errorf("%q: %+v, %v", text, got, ok)
		}
	}
}

func TestDescribeRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		kind, text string
		ok         bool
	}{
		"something else":       {"application/dtmf-relay", "Signal=1", true},
		"nothing said":         {"", "hello", true},
		"nothing said, of SDP": {"", "v=0\r\nm=audio x y z\r\n", false},
		"no type":              {"???", "v=0", false},
		"a port of words":      {typeSDP, "m=audio x RTP/AVP 0", false},
		"a port too large":     {typeSDP, "m=audio 65536 RTP/AVP 0", false},
		"an odd address":       {typeSDP, "c=IN ATM x\r\nm=audio 1 RTP/AVP 0", false},
		"no boundary":          {"multipart/mixed", "--a\r\n\r\n", false},
		"an open part":         {"multipart/mixed;boundary=a", "--a\r\nContent-Type: application/sdp\r\n\r\nv=0", false},
		"no such part":         {"multipart/mixed;boundary=a", "--a\r\nContent-Type: text/plain\r\n\r\nv=0\r\n--a--", true},
		"no media":             {typeSDP, "v=0\r\nc=IN IP4 192.0.2.7\r\n", true},
	} {
		if got, ok := describe(c.kind, []byte(c.text)); ok != c.ok || len(got) != 0 {
			t.Errorf("%s: %+v, %v", name, got, ok)
		}
	}
}

func TestManyMedia(t *testing.T) {
	got, ok := parseSDP([]byte("c=IN IP4 192.0.2.7\r\n" + strings.Repeat("m=audio 4 RTP/AVP 0\r\na=rtcp:6\r\n", 1000)))
	if !ok || len(got) != inspect.MaxStreams || got[inspect.MaxStreams-1].RTCP.Port() != 6 {
		t.Errorf("%d streams, %v", len(got), ok)
	}
}

// FuzzDescription compares with the library alone: where that reads a description, the streams are the same.
func FuzzDescription(f *testing.F) {
	for _, text := range lenient() {
		f.Add(text)
	}
	f.Add("v=0\r\no=- 1 1 IN IP6 ::1\r\ns=-\r\nt=0 0\r\nm=audio 1/2 RTP/AVP 0\r\nc=IN IP6 2001:db8::7\r\na=rtcp:9\r\na=rtcp-mux\r\nm=video 0 UDP 1\r\n")
	f.Fuzz(func(t *testing.T, text string) {
		if len(text) > 4096 {
			return
		}
		got, ok := describe(typeSDP, []byte(text))
		if len(got) > inspect.MaxStreams {
			t.Fatalf("%d streams", len(got))
		}
		// White space that the library takes for the end of a line or leaves out is a matter of taste.
		var d sdp.SessionDescription
		if d.UnmarshalString(text) != nil || len(d.MediaDescriptions) > inspect.MaxStreams || strings.ContainsAny(text, "\t\x00") ||
			strings.Contains(strings.ReplaceAll(text, "\r\n", ""), "\r") {
			return
		}
		if !ok || len(got) != len(d.MediaDescriptions) {
			t.Fatalf("%d streams, %v; the library %d", len(got), ok, len(d.MediaDescriptions))
		}
		for i, m := range d.MediaDescriptions {
			if port := m.MediaName.Port.Value; port != int(got[i].RTP.Port()) && port != portDiscard && port != 0 {
				t.Errorf("medium %d: port %d, the library %d", i, got[i].RTP.Port(), port)
			}
			where := m.ConnectionInformation
			if where == nil {
				where = d.ConnectionInformation
			}
			if where == nil || where.Address == nil || m.MediaName.Port.Value == 0 || got[i].Transport == inspect.Multicast {
				continue
			}
			if want := address(where.Address.Address); want != got[i].RTP.Addr() {
				t.Errorf("medium %d: %v, the library %v", i, got[i].RTP.Addr(), want)
			}
		}
	})
}

func BenchmarkDescribe(b *testing.B) {
	text := []byte(lenient()["as it should be"])
	b.ReportAllocs()
	for b.Loop() {
		describe(typeSDP, text)
	}
}
