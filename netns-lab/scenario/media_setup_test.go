// SPDX-License-Identifier: Apache-2.0

package scenario_test

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/netip"
	"net/textproto"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rehome-net/rehome/dispatcher"
	netnslab "github.com/rehome-net/rehome/netns-lab"
	"github.com/rehome-net/rehome/netns-lab/scenario"
)

// setupServer answers SETUP by the book, whatever its version, and grants multicast, too: a server of RTSP 2.0 is not to be had.
type setupServer struct {
	host  *netnslab.Host
	vip   netip.Addr
	port  uint16 // of RTP; RTCP has the next
	heard atomic.Int64
}

// startSetup starts one on a server's host.
func startSetup(t *testing.T, m *scenario.Media, server string, port uint16) *setupServer {
	t.Helper()
	h, err := m.Lab.Host(server)
	if err != nil {
		t.Fatal(err)
	}
	s := &setupServer{host: h, vip: m.VIP(), port: port}
	ctx := testContext(t, time.Minute)
	ln, err := h.Listen(ctx, "tcp", netip.AddrPortFrom(s.vip, scenario.RTSPPort).String())
	if err != nil {
		t.Fatal(err)
	}
	for p := range uint16(2) {
		media, err := h.ListenPacket(ctx, "udp", netip.AddrPortFrom(s.vip, port+p).String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = media.Close() })
		go func() {
			b := make([]byte, 2048)
			for {
				if _, _, err := media.ReadFrom(b); err != nil {
					return
				}
				s.heard.Add(1)
			}
		}()
	}
	t.Cleanup(func() { _ = ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go s.serve(c)
		}
	}()
	return s
}

// readMessage returns the first line and the fields of a message without a body.
func readMessage(r *bufio.Reader) (first string, fields textproto.MIMEHeader, err error) {
	p := textproto.NewReader(r)
	if first, err = p.ReadLine(); err != nil {
		return "", nil, err
	}
	fields, err = p.ReadMIMEHeader()
	return first, fields, err
}

func (s *setupServer) serve(c net.Conn) {
	defer c.Close() //nolint:errcheck // nobody is left to tell
	r := bufio.NewReader(c)
	for {
		first, fields, err := readMessage(r)
		if err != nil {
			return
		}
		version := first[strings.LastIndex(first, " ")+1:]
		extra := ""
		if asked := fields.Get("Transport"); asked != "" {
			switch {
			case strings.Contains(asked, "multicast"):
				asked = strings.Replace(asked, "multicast", "multicast;destination=233.252.0.1;port=9000-9001;ttl=4", 1)
			case strings.Contains(asked, "interleaved"):
			case version == "RTSP/2.0":
				asked += fmt.Sprintf(";src_addr=\"%v\"/\"%v\"", netip.AddrPortFrom(s.vip, s.port), netip.AddrPortFrom(s.vip, s.port+1))
			default:
				asked += fmt.Sprintf(";server_port=%d-%d", s.port, s.port+1)
			}
			extra = "Session: 12345678;timeout=90\r\nTransport: " + asked + "\r\n"
		}
		if _, err := fmt.Fprintf(c, "%s 200 OK\r\nCSeq: %s\r\n%s\r\n", version, fields.Get("CSeq"), extra); err != nil {
			return
		}
	}
}

// TestMediaSetup goes through the transports of RTSP 1.0 and 2.0, with the gateway: media over UDP find their server from the first packet on, those that
// travel interleaved need nothing, and multicast is not served, whatever the server says.
func TestMediaSetup(t *testing.T) {
	t.Parallel()
	m := media(t, "setup", scenario.MediaFarmConfig{Agents: true, Hold: time.Second, Dispatcher: func(c *dispatcher.Config) {
		for i := range c.Services {
			c.Services[i].Sticky = dispatcher.StickyNone
		}
	}})
	ctx := testContext(t, time.Minute)
	var servers []*setupServer
	for i, name := range m.Servers() {
		servers = append(servers, startSetup(t, m, name, uint16(8000+100*i)))
	}
	if err := m.StartDispatcher(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := m.StartGateway(ctx); err != nil {
		t.Fatal(err)
	}
	heard := func() (n int64) {
		for _, s := range servers {
			n += s.heard.Load()
		}
		return n
	}
	client, err := m.Lab.Host(scenario.ClientHost)
	if err != nil {
		t.Fatal(err)
	}
	const packets = 20
	for i, tt := range []struct {
		name, version, transport string
		media                    bool
		announced                float64
		finding                  string
	}{
		{"1.0, UDP", "RTSP/1.0", "RTP/AVP;unicast;client_port=%d-%d", true, 2, ""},
		{"2.0, UDP", "RTSP/2.0", `RTP/AVP/UDP;unicast;dest_addr=":%d"/":%d"`, true, 2, ""},
		{"1.0, interleaved", "RTSP/1.0", "RTP/AVP/TCP;unicast;interleaved=0-1", false, 0, ""},
		{"2.0, interleaved", "RTSP/2.0", "RTP/AVP/TCP;unicast;interleaved=0-1", false, 0, ""},
		{"1.0, multicast", "RTSP/1.0", "RTP/AVP;multicast", false, 0, "multicast"},
		{"2.0, multicast", "RTSP/2.0", "RTP/AVP;multicast", false, 0, "multicast"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before, err := m.FrontCounters(ctx)
			if err != nil {
				t.Fatal(err)
			}
			from, first := heard(), uint16(42000+10*i)
			transport := tt.transport
			if tt.media {
				transport = fmt.Sprintf(transport, first, first+1)
			}
			answer := setUp(ctx, t, client, m.VIP(), tt.version, transport, func(server uint16) {
				if !tt.media {
					return
				}
				for p := range uint16(2) {
					// At once: the answer says that the way is prepared.
					for range packets {
						sendFrom(ctx, t, client, first+p, netip.AddrPortFrom(m.VIP(), server+p))
					}
				}
			})
			if !strings.Contains(answer, "200 OK") {
				t.Errorf("the server says %s", answer)
			}
			want := int64(0)
			if tt.media {
				want = 2 * packets
			}
			for end := time.Now().Add(5 * time.Second); heard()-from < want && time.Now().Before(end); time.Sleep(time.Millisecond) {
			}
			after, err := m.FrontCounters(ctx)
			if err != nil {
				t.Fatal(err)
			}
			got := map[string]float64{"announced": after["announced_flows_total"] - before["announced_flows_total"], "heard": float64(heard() - from)}
			wanted := map[string]float64{"announced": tt.announced, "heard": float64(want)}
			if tt.finding != "" {
				name := "signalling_findings_total " + tt.finding
				got[name], wanted[name] = min(after[name]-before[name], 1), 1
			}
			if diff := cmp.Diff(wanted, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// setUp sends SETUP, has work done when it is answered, and then TEARDOWN, which must be answered, too.
func setUp(ctx context.Context, t *testing.T, client *netnslab.Host, vip netip.Addr, version, transport string, work func(server uint16)) (answer string) {
	t.Helper()
	c, err := client.Dial(ctx, "tcp", netip.AddrPortFrom(vip, scenario.RTSPPort).String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close() //nolint:errcheck // it has been answered
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	r := bufio.NewReader(c)
	ask := func(format string, args ...any) (string, textproto.MIMEHeader) {
		if _, err := fmt.Fprintf(c, format, args...); err != nil {
			t.Fatal(err)
		}
		first, fields, err := readMessage(r)
		if err != nil {
			t.Fatal(err)
		}
		return first, fields
	}
	url := fmt.Sprintf("rtsp://%v/movie", vip)
	answer, fields := ask("SETUP %s %s\r\nCSeq: 1\r\nTransport: %s\r\n\r\n", url, version, transport)
	var server uint16
	granted := fields.Get("Transport")
	if _, text, ok := strings.Cut(granted, "server_port="); ok {
		_, _ = fmt.Sscanf(text, "%d-", &server)
	} else if _, text, ok := strings.Cut(granted, "src_addr=\""+vip.String()+":"); ok {
		_, _ = fmt.Sscanf(text, "%d\"", &server)
	}
	work(server)
	ask("TEARDOWN %s %s\r\nCSeq: 2\r\nSession: 12345678\r\n\r\n", url, version)
	return answer
}

// sendFrom sends a datagram of RTP's size.
func sendFrom(ctx context.Context, t *testing.T, h *netnslab.Host, port uint16, to netip.AddrPort) {
	t.Helper()
	c, err := h.ListenPacket(ctx, "udp", netip.AddrPortFrom(h.Addr4(), port).String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close() //nolint:errcheck // what was sent is counted elsewhere
	if _, err := c.WriteTo(make([]byte, 172), net.UDPAddrFromAddrPort(to)); err != nil {
		t.Fatal(err)
	}
}
