// SPDX-License-Identifier: Apache-2.0

package scenario_test

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"

	"github.com/rehome-net/rehome/dispatcher/session/inspect"
	netnslab "github.com/rehome-net/rehome/netns-lab"
	"github.com/rehome-net/rehome/netns-lab/scenario"
)

// media is a standing lab for the tests of one function.
func media(t *testing.T, kind string, cfg scenario.MediaFarmConfig) *scenario.Media {
	t.Helper()
	needPrograms(t, scenario.MediaPrograms()...)
	cfg.Lab, cfg.Command = labName(kind), binary(t)
	m, err := scenario.StartMedia(testContext(t, time.Minute), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
		checkGone(t, cfg.Lab)
	})
	return m
}

// TestMediaPeers has every client talk to one server directly, through the router.
func TestMediaPeers(t *testing.T) {
	t.Parallel()
	m := media(t, "peers", scenario.MediaFarmConfig{})
	const server = scenario.MediaHost2
	ctx := testContext(t, time.Minute)
	if err := m.Point(server); err != nil {
		t.Fatal(err)
	}
	for _, over := range []scenario.SIPTransport{scenario.SIPOverUDP, scenario.SIPOverTCP} {
		if err := m.ServeSIP(ctx, server, over); err != nil {
			t.Fatal(err)
		}
	}
	rtsp, err := m.ServeRTSP(ctx, server)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.ServeFTP(ctx, server); err != nil {
		t.Fatal(err)
	}
	capture, err := m.Capture()
	if err != nil {
		t.Fatal(err)
	}
	var g errgroup.Group
	for i := range 6 {
		over := []scenario.SIPTransport{scenario.SIPOverUDP, scenario.SIPOverTCP}[i%2]
		g.Go(func() error { return m.CallSIP(ctx, over, i) })
	}
	g.Go(func() error { return m.PlayRTSP(ctx, "one", time.Second) })
	g.Go(func() error { return m.RecordRTSP(ctx, "one", time.Second) })
	for _, mode := range scenario.FTPModes() {
		g.Go(func() error {
			err := m.FetchFTP(ctx, mode)
			if err != nil {
				t.Errorf("FTP, %s: %v", mode, err)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
	traffic, err := capture.Close()
	if err != nil {
		t.Fatal(err)
	}
	// 6 calls with a flow, a player and a recorder with two each, 7 transfers.
	tally := traffic.Tally()
	if tally.Announced != 6+2+2+7 || tally.Misrouted != 0 || tally.Lost != 0 || tally.Packets < 6*100 || traffic.Missed != 0 {
		t.Errorf("%+v, %d missed", tally, traffic.Missed)
	}
	if packets, recordings := rtsp.Received(); recordings != 1 || packets < 6 {
		t.Errorf("%d packets in %d recordings", packets, recordings)
	}
	if t.Failed() {
		t.Log(m.Logs(server))
	}
}

// TestMediaGateway has the gateway read what a server answers: every announced flow is told to the dispatcher before the client hears of it, no answer is late,
// and when the gateway is killed, sessions go on without it.
func TestMediaGateway(t *testing.T) {
	t.Parallel()
	m := media(t, "gateway", scenario.MediaFarmConfig{Hold: time.Second}) // the machine may be busy
	const server = scenario.MediaHost2
	ctx := testContext(t, time.Minute)
	if err := m.Point(server); err != nil {
		t.Fatal(err)
	}
	listener, err := m.ListenAsDispatcher(ctx)
	if err != nil {
		t.Fatal(err)
	}
	gw, err := m.StartGateway(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.ServeAll(ctx, server); err != nil {
		t.Fatal(err)
	}
	var spoken bytes.Buffer
	client, err := m.Lab.Host(scenario.ClientHost)
	if err != nil {
		t.Fatal(err)
	}
	listening, err := client.Capture(netnslab.CaptureConfig{Pcap: &spoken, SnapLen: 65535})
	if err != nil {
		t.Fatal(err)
	}
	capture, err := m.Capture()
	if err != nil {
		t.Fatal(err)
	}
	work := scenario.MediaWork{Calls: 4, Plays: 2, Records: 2, Transfers: 1}
	sessions, err := m.Work(ctx, work, nil)
	if err != nil {
		t.Error(err)
	}
	traffic, err := capture.Close()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := listening.Close(); err != nil {
		t.Fatal(err)
	}
	// What both sides have said must announce every flow that there was.
	k := newTalks(t, m.VIP())
	for _, said := range listener.Said() {
		k.add(said.At, said.Halves...)
	}
	k.readClient(&spoken)
	k.pair()
	for _, flow := range traffic.Unannounced(k.installed) {
		t.Errorf("nobody has announced %+v", flow)
	}
	if len(k.findings) > 0 || len(k.installed) < work.Flows() {
		t.Errorf("%d announcements, findings %v", len(k.installed), k.findings)
	}
	if sessions != work.Sessions() {
		t.Errorf("%d sessions of %d", sessions, work.Sessions())
	}
	streams := map[inspect.Protocol]int{}
	for _, said := range listener.Said() {
		for _, h := range said.Halves {
			streams[h.Protocol] += len(h.Streams)
		}
	}
	// Of FTP only the passive modes (4 of 7) have a server that names a port.
	want := map[inspect.Protocol]int{inspect.SIP: work.Calls, inspect.RTSP: work.Plays + work.Records, inspect.FTP: 4 * work.Transfers}
	if diff := cmp.Diff(want, streams); diff != "" {
		t.Errorf("announced streams (-want +got):\n%s", diff)
	}
	for name, want := range map[string]float64{
		"late_packets": 0, "behind_packets": 0, "refused_packets": 0, "rejected_reports": 0, "lost_packets": 0, "failed_streams": 0,
		"confirmed_reports": float64(len(listener.Said())),
	} {
		if got, err := gw.Counter(ctx, "rehome_gateway_"+name+"_total"); err != nil || got != want {
			t.Errorf("%s: %v, want %v, %v", name, got, want, err)
		}
	}
	wake, err := gw.Hang()
	if err != nil {
		t.Fatal(err)
	}
	if err := m.FetchFTP(ctx, scenario.FTPPassive); err != nil {
		t.Errorf("while the gateway hangs: %v", err)
	}
	if err := wake(); err != nil {
		t.Fatal(err)
	}
	if err := m.FetchFTP(ctx, scenario.FTPPassive); err != nil {
		t.Errorf("after the gateway has hung: %v", err)
	}
	before := len(listener.Said())
	killed := make(chan error, 1)
	sessions, err = m.Work(ctx, work, func() { killed <- gw.Kill() })
	if err := errors.Join(err, <-killed); err != nil || sessions != work.Sessions() {
		t.Errorf("%d sessions of %d while the gateway was killed: %v", sessions, work.Sessions(), err)
	}
	if n := len(listener.Said()); n == before {
		t.Error("it was killed before it had anything to read")
	}
}

// TestPlayMedia plays the scene without a dispatcher.
func TestPlayMedia(t *testing.T) {
	needPrograms(t, scenario.MediaPrograms()...)
	lab := labName("media")
	r, err := scenario.PlayMedia(testContext(t, time.Minute), scenario.PlayMediaConfig{
		Command: binary(t), Lab: lab, Direct: true, Hold: time.Second, Work: scenario.MediaWork{Calls: 2, Plays: 1, Records: 1, Interleaved: 1, Transfers: 1, Queries: 2},
	})
	if err != nil {
		t.Fatal(err)
	}
	checkGone(t, lab)
	if !r.OK || r.Sessions != 2+1+1+1+7+2 || r.DatagramFlows != 2 || r.AnnouncedFlows != 2+2+2+7 || r.MediaPackets == 0 || r.GatewayReports == 0 || r.AnswersLate != 0 {
		t.Errorf("%+v", r)
	}
}

// TestMediaCallsBearRepetitions has every datagram of a caller come twice, and so late that the caller repeats it.
func TestMediaCallsBearRepetitions(t *testing.T) {
	m := media(t, "repeats", scenario.MediaFarmConfig{})
	ctx := testContext(t, time.Minute)
	if err := m.Point(scenario.MediaHost1); err != nil {
		t.Fatal(err)
	}
	if err := m.ServeSIP(ctx, scenario.MediaHost1, scenario.SIPOverUDP); err != nil {
		t.Fatal(err)
	}
	up, down := netnslab.Impairment{Delay: 350 * time.Millisecond, Duplicate: 1}, netnslab.Impairment{Delay: 300 * time.Millisecond}
	if _, err := m.Lab.Impair(ctx, scenario.ClientHost, up, down); err != nil {
		t.Fatal(err)
	}
	if err := m.CallSIP(ctx, scenario.SIPOverUDP, 0); err != nil {
		t.Error(err)
	}
}
