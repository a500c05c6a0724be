// SPDX-License-Identifier: Apache-2.0

package scenario_test

import (
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

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
	g.Go(func() error { return m.PlayRTSP(ctx, time.Second) })
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
