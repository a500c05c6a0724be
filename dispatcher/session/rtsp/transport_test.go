// SPDX-License-Identifier: Apache-2.0

package rtsp

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/rehome-net/rehome/dispatcher/session/inspect"
	"github.com/rehome-net/rehome/dispatcher/session/inspect/inspecttest"
)

func portOf(n uint16) netip.AddrPort { return netip.AddrPortFrom(netip.Addr{}, n) }

// TestTransport reads one description as each side's.
func TestTransport(t *testing.T) {
	at := netip.MustParseAddrPort
	host := func(s string) netip.AddrPort { return netip.AddrPortFrom(netip.MustParseAddr(s), 0) }
	for _, c := range []struct {
		spec string
		want inspect.Stream // as the client's
	}{
		{"RTP/AVP;unicast;client_port=8000-8001", inspect.Stream{Transport: inspect.RTP, RTP: portOf(8000), RTCP: portOf(8001)}},
		{"RTP/AVP;unicast;client_port=8000", inspect.Stream{Transport: inspect.RTP, RTP: portOf(8000), RTCP: portOf(8001)}},
		{"RTP/AVP;unicast;client_port=8000-9000", inspect.Stream{Transport: inspect.RTP, RTP: portOf(8000), RTCP: portOf(9000)}},
		{"RTP/AVP;client_port=8000-8001", inspect.Stream{Transport: inspect.RTP, RTP: portOf(8000), RTCP: portOf(8001)}},
		{"RTP/AVP;unicast", inspect.Stream{Transport: inspect.RTP}},
		{"RTP/AVP;unicast;client_port=x", inspect.Stream{Transport: inspect.RTP}},
		{"RTP/AVP;unicast;client_port=70000-70001", inspect.Stream{Transport: inspect.RTP}},
		{" rtp/savpf/udp ; UNICAST ; Client_Port = 8000-8001 ", inspect.Stream{Transport: inspect.RTP, RTP: portOf(8000), RTCP: portOf(8001)}},
		{"RTP/AVP", inspect.Stream{Transport: inspect.Multicast}},
		{"RTP/AVP;multicast;client_port=8000", inspect.Stream{Transport: inspect.Multicast}},
		{"RTP/AVP/TCP;interleaved=0-1", inspect.Stream{Transport: inspect.Interleaved}},
		{"RTP/AVP;unicast;interleaved=0-1;client_port=8000", inspect.Stream{Transport: inspect.Interleaved}},
		{"RTP/AVP/TCP;unicast;dest_addr=\":8000\"", inspect.Stream{Transport: inspect.Unsupported}},
		{"RTP/AVP/SCTP;unicast", inspect.Stream{Transport: inspect.Unsupported}},
		{"RAW/RAW/UDP;unicast;client_port=8000", inspect.Stream{Transport: inspect.Datagrams, RTP: portOf(8000)}},
		{"x;unicast", inspect.Stream{Transport: inspect.Unsupported}},
		{";unicast", inspect.Stream{Transport: inspect.Unsupported}},
		{"RTP/AVP;unicast;destination=192.0.2.7;client_port=8000-8001;server_port=9000-9001", inspect.Stream{
			Transport: inspect.RTP, RTP: at("192.0.2.7:8000"), RTCP: at("192.0.2.7:8001"), PeerRTP: portOf(9000), PeerRTCP: portOf(9001),
		}},
		{"RTP/AVP;unicast;destination=example.com;source=192.0.2.9;client_port=8000", inspect.Stream{
			Transport: inspect.RTP, RTP: portOf(8000), RTCP: portOf(8001), PeerRTP: host("192.0.2.9"), PeerRTCP: host("192.0.2.9"),
		}},
		{`RTP/AVP;unicast;dest_addr="192.0.2.7:8000"/"192.0.2.7:8005";src_addr="192.0.2.9:9000"`, inspect.Stream{
			Transport: inspect.RTP, RTP: at("192.0.2.7:8000"), RTCP: at("192.0.2.7:8005"), PeerRTP: at("192.0.2.9:9000"), PeerRTCP: at("192.0.2.9:9001"),
		}},
		{`RTP/AVP;unicast;RTCP-mux;dest_addr="[2001:db8::7]:8000"`, inspect.Stream{
			Transport: inspect.RTP, Mux: true, RTP: at("[2001:db8::7]:8000"), RTCP: at("[2001:db8::7]:8001"),
		}},
		{`RTP/AVP;unicast;dest_addr="[::ffff:192.0.2.7]:8000"/":8001"`, inspect.Stream{
			Transport: inspect.RTP, RTP: at("192.0.2.7:8000"), RTCP: at("192.0.2.7:8001"),
		}},
		{`RTP/AVP;unicast;dest_addr="fe80::1%eth0"`, inspect.Stream{Transport: inspect.RTP, RTP: host("fe80::1"), RTCP: host("fe80::1")}},
		{`RTP/AVP;unicast;destination=192.0.2.8;dest_addr="192.0.2.7:8000"`, inspect.Stream{Transport: inspect.RTP, RTP: at("192.0.2.7:8000"), RTCP: at("192.0.2.7:8001")}},
		{`RTP/AVP;unicast;dest_addr=":"/"x/y"`, inspect.Stream{Transport: inspect.RTP}},
	} {
		got := parseTransport([]byte(c.spec), inspect.Client)
		if d := cmp.Diff(c.want, got, inspecttest.Comparer()); d != "" {
			t.Errorf("%s (-want +got):\n%s", c.spec, d)
		}
		want := c.want
		want.RTP, want.RTCP, want.PeerRTP, want.PeerRTCP = want.PeerRTP, want.PeerRTCP, want.RTP, want.RTCP
		if d := cmp.Diff(want, parseTransport([]byte(c.spec), inspect.Server), inspecttest.Comparer()); d != "" {
			t.Errorf("%s, the server's (-want +got):\n%s", c.spec, d)
		}
	}
}

func TestTransports(t *testing.T) {
	for spec, want := range map[string]int{
		"": 0, ",": 0, " , ,": 0, "RTP/AVP": 1, "RTP/AVP,RTP/AVP": 2, `RTP/AVP;mode="PLAY,RECORD",RTP/AVP`: 2, `RTP/AVP;mode="PLAY,RTP/AVP`: 1,
	} {
		if got := appendTransports(nil, []byte(spec), inspect.Client); len(got) != want {
			t.Errorf("%q: %d", spec, len(got))
		}
	}
}

func TestStart(t *testing.T) {
	for line, ok := range map[string]bool{
		"SETUP rtsp://cam/1 RTSP/1.0":           true,
		"GET_PARAMETER * RTSP/2.0":              true,
		"X rtsp://cam/1 RTSP/1.1":               true,
		"RTSP/1.0 404 Not Found":                true,
		"setup rtsp://cam/1 RTSP/1.0":           false,
		"SETUP  RTSP/1.0":                       false,
		" rtsp://cam/1 RTSP/1.0":                false,
		"SETUP rtsp://cam/1":                    false,
		"SETUP rtsp://cam/1 RTSP/1.0 ":          false,
		"SETUP rtsp://cam/1 RTSP/1":             false,
		"SETUP rtsp://cam/1 HTTP/1.0":           false,
		"x\xffSETUP rtsp://cam/1 RTSP/1.0":      false,
		strings.Repeat("X", 33) + " * RTSP/1.0": false,
	} {
		var m message
		if got := m.start([]byte(line)); got != ok {
			t.Errorf("%q: %v", line, got)
		}
	}
}

func TestFind(t *testing.T) {
	for line, ok := range map[string]bool{
		"RTSP/1.0 200 OK":                      true,
		"RTSP/1.0 200":                         true,
		"RTSP/2.1 999 x":                       true,
		"xxRTSP/1.0 RTSP/1.0 404 Not Found":    true,
		"\x00\xffSETUP rtsp://cam/1 RTSP/1.0":  true,
		"XSETUP rtsp://cam/1 RTSP/1.0":         true,
		"RTSP/1.0 2000 OK":                     false,
		"RTSP/1.0 099 OK":                      false,
		"RTSP/1.0 20":                          false,
		"RTSP/0.9 200 OK":                      false,
		"RTSP/1.0":                             false,
		"SETUP RTSP/1.0":                       false,
		"STUFF rtsp://cam/1 RTSP/1.0":          false,
		"SETUP rtsp://cam/1 RTSP/1.0 and more": false,
		"SETUP rtsp://cam/1RTSP/1.0":           false,
	} {
		var m message
		if got := m.find([]byte(line)); got != ok {
			t.Errorf("%q: %v", line, got)
		}
	}
}
