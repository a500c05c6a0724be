// SPDX-License-Identifier: Apache-2.0

package streamer

import (
	"context"
	"net"
	"net/netip"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bluenviron/gortsplib/v4"
	"github.com/bluenviron/gortsplib/v4/pkg/base"
	"github.com/bluenviron/gortsplib/v4/pkg/description"
	"github.com/bluenviron/gortsplib/v4/pkg/format"
	"github.com/pion/rtp"
)

func listen(t *testing.T) (*Server, *base.URL) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := ln.Addr().(*net.TCPAddr).AddrPort()
	_ = ln.Close()
	s, err := Listen(t.Context(), Config{Address: at, FirstPort: 38000, Agent: t.TempDir() + "/none", Linger: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	u, err := base.ParseURL("rtsp://127.0.0.1:" + strconv.Itoa(int(at.Port())) + "/live")
	if err != nil {
		t.Fatal(err)
	}
	return s, u
}

func overUDP() *gortsplib.Transport {
	udp := gortsplib.TransportUDP
	return &udp
}

// ended waits until a server has no session.
func ended(t *testing.T, s *Server) Total {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for s.Live() > 0 || s.Total().Sessions == 0 {
		select {
		case <-ctx.Done():
			t.Fatalf("%d sessions live", s.Live())
		case <-time.After(time.Millisecond):
		}
	}
	return s.Total()
}

// TestPlay plays with gortsplib's client, which counts what is lost.
func TestPlay(t *testing.T) {
	s, u := listen(t)
	var lost, heard atomic.Int64
	c := gortsplib.Client{Scheme: u.Scheme, Host: u.Host, Transport: overUDP(), OnPacketsLost: func(n uint64) { lost.Add(int64(n)) }}
	if err := c.Start2(); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	d, _, err := c.Describe(u)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.SetupAll(d.BaseURL, d.Medias); err != nil {
		t.Fatal(err)
	}
	enough := make(chan struct{})
	c.OnPacketRTPAny(func(_ *description.Media, _ format.Format, p *rtp.Packet) {
		if len(p.Payload) != samples {
			t.Errorf("a payload of %d bytes", len(p.Payload))
		}
		if heard.Add(1) == 10 {
			close(enough)
		}
	})
	if _, err := c.Play(nil); err != nil {
		t.Fatal(err)
	}
	select {
	case <-enough:
	case <-time.After(10 * time.Second):
		t.Fatal("no media")
	}
	c.Close()
	if total := ended(t, s); total.Sessions != 1 || total.Imported != 0 || lost.Load() != 0 {
		t.Errorf("%+v, %d lost", total, lost.Load())
	}
}

// TestRecording has gortsplib's client send.
func TestRecording(t *testing.T) {
	s, u := listen(t)
	c := gortsplib.Client{Transport: overUDP()}
	d := &description.Session{Medias: []*description.Media{{
		Type: description.MediaTypeAudio, Formats: []format.Format{&format.G711{PayloadTyp: 0, MULaw: true, SampleRate: 8000, ChannelCount: 1}},
	}}}
	if err := c.StartRecording(u.String(), d); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for i := range uint16(50) {
		p := &rtp.Packet{Header: rtp.Header{Version: 2, SequenceNumber: 65500 + i}, Payload: make([]byte, samples)}
		if err := c.WritePacketRTP(d.Medias[0], p); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond) // the client's own queue is short
	}
	c.Close()
	if total := ended(t, s); total.RTP != 50 || total.Missing != 0 || total.Late != 0 {
		t.Errorf("%+v", total)
	}
}

func TestConfig(t *testing.T) {
	good := netip.MustParseAddrPort("127.0.0.1:554")
	for name, c := range map[string]Config{
		"no address":     {},
		"any address":    {Address: netip.MustParseAddrPort("0.0.0.0:554")},
		"odd port":       {Address: good, FirstPort: 8001},
		"too many ports": {Address: good, FirstPort: 65000, Ports: 1000},
		"capacity":       {Address: good, Capacity: -1},
	} {
		if _, err := Listen(t.Context(), c); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}
