// SPDX-License-Identifier: Apache-2.0

package scenario_test

import (
	"net/netip"
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
		before.Go(func() error { return m.CallSIP(ctx, scenario.SIPOverTCP, 100+i) })
	}
	// All downloads are under way before the server that has most of them is drained.
	drains, most := 0, 0
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		all := 0
		most = 0
		for i, server := range servers {
			n, err := m.Connections(ctx, server, "ftp")
			if err != nil {
				t.Fatal(err)
			}
			if all += n; n > most {
				drains, most = i, n
			}
		}
		if all == len(slow) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d downloads are under way", all)
		}
	}
	drained := servers[drains]
	lab := m.Lab.Topology().Name
	host, err := m.Lab.Host(drained)
	if err != nil {
		t.Fatal(err)
	}
	cmd := append(binary(t), "drain", "--wait", "--timeout", "30s", "--agent", scenario.ControlSocket(lab, drained))
	over := make(chan struct{})
	var out []byte
	var failed error
	var took time.Duration
	go func() {
		defer close(over)
		out, failed = host.Command(ctx, cmd[0], cmd[1:]...).CombinedOutput()
		took = time.Since(began)
	}()
	if err := m.AwaitDrained(ctx, drained); err != nil {
		t.Fatal(err)
	}
	// New ones: all of them go elsewhere.
	const calls, transfers = 4, 7 // of each way to transfer one
	had, err := m.Sessions(ctx, drained)
	if err != nil {
		t.Fatal(err)
	}
	if done, err := m.Work(ctx, scenario.MediaWork{Calls: calls, Transfers: 1}, nil); err != nil || done != calls+transfers {
		t.Errorf("%d sessions of %d were completed: %v", done, calls+transfers, err)
	}
	if now, err := m.Sessions(ctx, drained); err != nil || now > had {
		t.Errorf("%s had %v sessions, and has %v, %v", drained, had, now, err)
	}
	// By name it cannot be moved either, and the answer says why.
	refused := append(binary(t), "migrate", "10.78.0.1:1-"+netip.AddrPortFrom(m.VIP(), scenario.FTPPort).String(), "--to", servers[(drains+1)%len(servers)],
		"--agent", scenario.ControlSocket(lab, drained))
	if text, err := host.Command(ctx, refused[0], refused[1:]...).CombinedOutput(); err == nil || !strings.Contains(string(text), "nobody has changed") {
		t.Errorf("a connection of an unmodified server is moved: %v: %s", err, text)
	}
	if err := before.Wait(); err != nil {
		t.Errorf("a session that was under way: %v", err)
	}
	<-over
	if last := slices.Max(slow[:]); failed != nil || !strings.Contains(string(out), "that cannot move") || took < last-2*time.Second {
		t.Errorf("the drain ended after %v, sessions after %v: %v: %s", took, last, failed, out)
	}
	if n, err := m.Connections(ctx, drained, "ftp"); n != 0 || err != nil {
		t.Errorf("%d connections are left, %v", n, err)
	}
	traffic, err := capture.Close()
	if err != nil {
		t.Fatal(err)
	}
	if tally := traffic.Tally(); tally.Misrouted != 0 || tally.Lost != 0 || traffic.Missed != 0 || tally.PerServer[drains] < most {
		t.Errorf("%+v, %d missed", tally, traffic.Missed)
	}
	if t.Failed() {
		t.Log(m.Logs(drained))
	}
}
