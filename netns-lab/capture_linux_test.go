// SPDX-License-Identifier: Apache-2.0

package netnslab_test

import (
	"bytes"
	"errors"
	"io"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"

	netnslab "github.com/rehome-net/rehome/netns-lab"
	"github.com/rehome-net/rehome/netns-lab/labtest"
	"github.com/rehome-net/rehome/tcprepair"
)

func TestCaptureSeesAWholeConnection(t *testing.T) {
	lab := labtest.New(t, netnslab.Standard(1))
	ctx := limited(t, 10*time.Second)
	client, a := labtest.Host(t, lab, "client"), labtest.Host(t, lab, "a")
	for _, addr := range []netip.Addr{a.Addr4(), a.Addr6()} {
		to := netip.AddrPortFrom(addr, serveEcho(t, a, ":0"))
		var file bytes.Buffer
		capture, err := client.Capture(netnslab.CaptureConfig{Pcap: &file})
		if err != nil {
			t.Fatal(err)
		}
		c, err := client.Dial(ctx, "tcp", to.String())
		if err != nil {
			t.Fatal(err)
		}
		const rounds, size = 20, 1000
		if _, err := (netnslab.PingPong{Rounds: rounds, Size: size}).Run(ctx, c); err != nil {
			t.Fatal(err)
		}
		local := netip.MustParseAddrPort(c.LocalAddr().String())
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		trace, err := capture.Close()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := capture.Close(); !errors.Is(err, netnslab.ErrClosed) {
			t.Errorf("second close: %v", err)
		}
		flow := trace.Flow(tcprepair.NewFlow(to, local))
		var sent, received int
		for _, s := range flow.Segments {
			if s.Sent != (s.Src == local) {
				t.Errorf("direction of %+v", s)
			}
			if s.Sent {
				sent += s.Len
			} else {
				received += s.Len
			}
		}
		if sent != rounds*size || received != rounds*size {
			t.Errorf("%s: %d bytes sent, %d received, want %d each", addr, sent, received, rounds*size)
		}
		if flow.Connections() != 1 || flow.Resets() != 0 || trace.Missed != 0 {
			t.Errorf("%s: %d connections, %d resets, %d missed", addr, flow.Connections(), flow.Resets(), trace.Missed)
		}
		if got := pcapPackets(t, &file); got != len(trace.Segments)+trace.Others {
			t.Errorf("%s: %d packets in the file, %d in the trace", addr, got, len(trace.Segments)+trace.Others)
		}
	}
}

// pcapPackets reads the file back and counts.
func pcapPackets(t *testing.T, file io.Reader) int {
	t.Helper()
	r, err := pcapgo.NewReader(file)
	if err != nil {
		t.Fatal(err)
	}
	if r.LinkType() != layers.LinkTypeEthernet {
		t.Errorf("link type %v", r.LinkType())
	}
	for n := 0; ; n++ {
		data, info, err := r.ReadPacketData()
		if errors.Is(err, io.EOF) {
			return n
		}
		if err != nil {
			t.Fatal(err)
		}
		if age := time.Since(info.Timestamp); age < 0 || age > time.Minute {
			t.Errorf("packet %d is %v old", n, age)
		}
		if p := gopacket.NewPacket(data, layers.LayerTypeEthernet, gopacket.Default); p.NetworkLayer() == nil && p.Layer(layers.LayerTypeARP) == nil {
			t.Errorf("packet %d is neither IP nor ARP: %v", n, p)
		}
	}
}

// What the capture counts as sent again is what the kernel says, when every packet is MTU-sized.
func TestCaptureCountsRetransmissionsLikeTheKernel(t *testing.T) {
	topo := netnslab.Standard(1)
	topo.Impairments = []netnslab.HostImpairment{{Host: "client", Up: netnslab.Impairment{Delay: time.Millisecond, Loss: 0.02, Seed: 5}}}
	lab := labtest.New(t, topo)
	ctx := limited(t, 60*time.Second)
	capture, err := labtest.Host(t, lab, "client").Capture(netnslab.CaptureConfig{})
	if err != nil {
		t.Fatal(err)
	}
	info, _ := upload(ctx, t, lab, 4<<20)
	trace, err := capture.Close()
	if err != nil {
		t.Fatal(err)
	}
	if trace.Missed != 0 {
		t.Fatalf("missed %d packets", trace.Missed)
	}
	var src netip.AddrPort
	for _, s := range trace.Segments {
		if s.Sent {
			src = s.Src
		}
	}
	packets, octets := trace.From(src).Retransmitted()
	if info.Retransmitted == 0 {
		t.Fatal("nothing was lost")
	}
	// The kernel counts a super-packet's segments one by one.
	if packets == 0 || packets > int(info.Retransmitted) {
		t.Errorf("%d packets sent again, the kernel says %d segments", packets, info.Retransmitted)
	}
	if got, want := octets, int64(info.Retransmitted)*int64(info.MSS); got > want || got < want*9/10 {
		t.Errorf("%d bytes sent again, the kernel says %d segments of up to %d", got, info.Retransmitted, info.MSS)
	}
	t.Logf("capture: %d packets, %d bytes; kernel: %d segments", packets, octets, info.Retransmitted)
}

func TestCaptureRefuses(t *testing.T) {
	lab := labtest.New(t, netnslab.Standard(0))
	client := labtest.Host(t, lab, "client")
	for _, test := range []struct {
		cfg  netnslab.CaptureConfig
		want string
	}{
		{netnslab.CaptureConfig{Interface: "eth7"}, "eth7"},
		{netnslab.CaptureConfig{Interface: strings.Repeat("x", 16)}, "xxxx"},
		{netnslab.CaptureConfig{SnapLen: -1}, "snap length"},
		{netnslab.CaptureConfig{Pcap: brokenWriter{}}, "pcap"},
	} {
		if _, err := client.Capture(test.cfg); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%+v: error %v, want one with %q", test.cfg, err, test.want)
		}
	}
}

type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, errors.New("no space") }
