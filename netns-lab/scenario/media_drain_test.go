// SPDX-License-Identifier: Apache-2.0

package scenario_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/rehome-net/rehome/dispatcher"
	"github.com/rehome-net/rehome/netns-lab/scenario"
)

// ftpRate is how fast slow clients download, in bytes per second: about three seconds for the file.
const ftpRate = 85 << 10

// TestMediaDrain drains a host of servers that nobody has changed: what they have goes on there to its end, for which the command waits, and new sessions
// go elsewhere. Downloads over FTP and calls over TCP are under way.
func TestMediaDrain(t *testing.T) {
	t.Parallel()
	m := media(t, "mdrain", scenario.MediaFarmConfig{
		Agents: true, Hold: time.Second,
		// All clients are one host's: each is to be balanced.
		Dispatcher: func(c *dispatcher.Config) {
			for i := range c.Services {
				c.Services[i].Sticky = dispatcher.StickyNone
			}
		},
	})
	ctx := testContext(t, time.Minute)
	servers := m.Servers()
	for _, server := range servers {
		if err := m.ServeAll(ctx, server); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.StartDispatcher(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := m.StartGateway(ctx); err != nil {
		t.Fatal(err)
	}
	capture, err := m.Capture()
	if err != nil {
		t.Fatal(err)
	}
	var before errgroup.Group
	var slow [9]time.Duration
	began := time.Now()
	for i := range len(slow) {
		before.Go(func() error {
			err := m.FetchFTPSlowly(ctx, []scenario.FTPMode{scenario.FTPPassive, scenario.FTPActive}[i%2], ftpRate)
			slow[i] = time.Since(began)
			return err
		})
		before.Go(func() error { return m.CallSIP(ctx, scenario.SIPOverTCP, i) })
	}
	// The server has transfers before one is drained.
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		n, err := m.Connections(ctx, servers[0], "ftp")
		if err != nil || time.Now().After(deadline) {
			t.Fatalf("%d connections at %s, %v", n, servers[0], err)
		}
		if n >= 3 {
			break
		}
	}
	lab := m.Lab.Topology().Name
	host, err := m.Lab.Host(servers[0])
	if err != nil {
		t.Fatal(err)
	}
	cmd := append(binary(t), "drain", "--wait", "--timeout", "30s", "--agent", scenario.ControlSocket(lab, servers[0]))
	drained := make(chan struct{})
	var out []byte
	var failed error
	var took time.Duration
	go func() {
		defer close(drained)
		out, failed = host.Command(ctx, cmd[0], cmd[1:]...).CombinedOutput()
		took = time.Since(began)
	}()
	if err := m.AwaitDrained(ctx, servers[0]); err != nil {
		t.Fatal(err)
	}
	// New ones: all of them go elsewhere.
	const calls, transfers = 4, 7 // of each way to transfer one
	had, err := m.Sessions(ctx, servers[0])
	if err != nil {
		t.Fatal(err)
	}
	if done, err := m.Work(ctx, scenario.MediaWork{Calls: calls, Transfers: 1}, nil); err != nil || done != calls+transfers {
		t.Errorf("%d sessions of %d were completed: %v", done, calls+transfers, err)
	}
	if now, err := m.Sessions(ctx, servers[0]); err != nil || now > had {
		t.Errorf("%s had %v sessions, and has %v, %v", servers[0], had, now, err)
	}
	if err := before.Wait(); err != nil {
		t.Errorf("a session that was under way: %v", err)
	}
	<-drained
	if last := slices.Max(slow[:]); failed != nil || !strings.Contains(string(out), "that cannot move") || took < last-2*time.Second {
		t.Errorf("the drain ended after %v, sessions after %v: %v: %s", took, last, failed, out)
	}
	if n, err := m.Connections(ctx, servers[0], "ftp"); n != 0 || err != nil {
		t.Errorf("%d connections are left, %v", n, err)
	}
	traffic, err := capture.Close()
	if err != nil {
		t.Fatal(err)
	}
	if tally := traffic.Tally(); tally.Misrouted != 0 || tally.Lost != 0 || traffic.Missed != 0 || tally.PerServer[0] < 3 {
		t.Errorf("%+v, %d missed", tally, traffic.Missed)
	}
	if t.Failed() {
		t.Log(m.Logs(servers[0]))
	}
}
