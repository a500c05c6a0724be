// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"context"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/rehome-net/rehome/handoff/peer"
	"github.com/rehome-net/rehome/handoff/vitals"
	"github.com/rehome-net/rehome/handoff/wire"
)

// scrape returns the dispatcher's metrics with these names, without the prefix, by name and the values of their labels.
func scrape(t *testing.T, d *Dispatcher, names ...string) map[string]float64 {
	t.Helper()
	families, err := d.count.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]float64{}
	for _, f := range families {
		name := strings.TrimPrefix(f.GetName(), "rehome_dispatcher_")
		if !slices.Contains(names, name) {
			continue
		}
		for _, m := range f.GetMetric() {
			key := name
			for _, l := range m.GetLabel() {
				key += " " + l.GetValue()
			}
			values[key] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	return values
}

// hearing is a dispatcher that listens to reports, agents and a gateway, on ports of its own and over TLS.
type hearing struct {
	*stand
	ca      *authority
	agents  string
	reports net.Conn
}

func newHearing(t *testing.T) *hearing {
	t.Helper()
	secret := strings.Repeat("ab", 32)
	keys := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(keys, []byte("1 * "+secret+"\n2 2 "+secret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := sessionConfig(t)
	for i := range cfg.Services { // addresses that this host has
		cfg.Services[i].Addresses = []netip.AddrPort{free(t)}
	}
	cfg.Listen = free(t).String()
	cfg.Reports = ReportsConfig{Keys: keys, Listen: "127.0.0.1:0", Interval: time.Minute}
	h := &hearing{ca: newAuthority(t), agents: cfg.Listen}
	h.stand = start(t, cfg, func(d *Dispatcher) {
		d.self.Identity = peer.NewIdentity(h.ca.issue(t, "front"), h.ca.pool)
		var err error
		if d.management, err = newManagement(d); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = d.management.monitor.Close() })
		if d.sessions, err = newSessions(d, newMemoryPath()); err != nil {
			t.Fatal(err)
		}
	})
	var err error
	if h.reports, err = net.Dial("udp", h.management.monitor.Addr().String()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.reports.Close() })
	return h
}

// say connects under a name, with a certificate for another or the same one, says something and waits for the end of the link.
func (h *hearing) say(t *testing.T, ca *authority, name, certified string, messages ...wire.Message) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	self := peer.Self{Host: name, Identity: peer.NewIdentity(ca.issue(t, certified), h.ca.pool)}
	link, err := self.Dial(ctx, "front", h.agents)
	if err != nil {
		return // refused at once
	}
	defer link.Close() //nolint:errcheck // broken
	defer context.AfterFunc(ctx, func() { _ = link.Close() })()
	for i, m := range messages {
		if link.Send(uint64(i+1), m) != nil {
			return
		}
	}
	for err == nil {
		_, _, err = link.Receive()
	}
	if ctx.Err() != nil {
		t.Errorf("%s may say %v", name, messages)
	}
}

// TestStrangersAreCounted: who is no peer, who only says so, and what no peer says is refused, and the operator sees it.
func TestStrangersAreCounted(t *testing.T) {
	h := newHearing(t)
	names := []string{"rejected_peers_total", "agent_messages_refused_total", "gateway_messages_refused_total", "gateway_reports_total", "gateway_reports_rejected_total", "gateways"}
	want := map[string]float64{}
	for _, name := range names {
		want[name] = 0
	}
	if diff := cmp.Diff(want, scrape(t, h.Dispatcher, names...)); diff != "" {
		t.Fatalf("before anybody came: %s", diff)
	}
	halves := &wire.Halves{Flow: flowOf(tcpKey(stranger, 1000, 554)), Protocol: 6, Halves: [][]byte{{1, 2, 3}}}
	h.say(t, h.ca, "somebody", "somebody", halves)    // no peer
	h.say(t, h.ca, "gw", "b1", halves)                // a server that calls itself the gateway
	h.say(t, newAuthority(t), "gw", "gw", halves)     // somebody else's certificate
	c, err := net.DialTimeout("tcp", h.agents, limit) // no certificate at all
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(c, "GET / HTTP/1.1\r\n\r\n")
	_ = c.Close()
	h.say(t, h.ca, "b1", "b1", halves)                       // an agent that speaks as a gateway
	h.say(t, h.ca, "gw", "gw", halves)                       // before it has greeted
	h.say(t, h.ca, "gw", "gw", &wire.GatewayHello{}, halves) // what no server says
	want["rejected_peers_total"], want["agent_messages_refused_total"], want["gateway_messages_refused_total"] = 4, 1, 2
	until(t, "all is counted", func() bool { return cmp.Equal(want, scrape(t, h.Dispatcher, names...)) })
}

// TestReportsAreCounted: forged, replayed and foreign reports are refused, counted by reason, and change nothing.
func TestReportsAreCounted(t *testing.T) {
	h := newHearing(t)
	sealer := func(id uint16, secret string) *vitals.Sealer {
		s, err := vitals.NewSealer(vitals.Key{ID: id, Secret: []byte(secret)})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	secret := strings.Repeat("\xab", 32)
	b1 := uint32(h.backend("b1").node)
	beat := vitals.Heartbeat{Host: b1, Seq: 1, Flag: vitals.Available, Stamp: vitals.StampOf(time.Now())}
	good := sealer(1, secret).Append(nil, beat, time.Now())
	vector := sealer(1, secret).Append(nil, vitals.Vector{Host: b1, Seq: 2, Interval: time.Minute}, time.Now())
	beat.Flag = vitals.ApplicationDown
	for _, b := range [][]byte{
		good, vector,
		vector, vector, good, // replayed
		sealer(1, strings.Repeat("\xcd", 32)).Append(nil, beat, time.Now()), // forged
		sealer(3, secret).Append(nil, beat, time.Now()),                     // under a key that nobody has
		sealer(2, secret).Append(nil, beat, time.Now()),                     // with another host's key
		sealer(1, secret).Append(nil, beat, time.Now().Add(-time.Hour)),     // from another time
		[]byte("hello"),
		sealer(1, secret).Append(nil, vitals.Heartbeat{Host: 4711, Flag: vitals.Available}, time.Now()), // of nobody here
	} {
		if _, err := h.reports.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	names := []string{"reports_total", "reports_refused_total", "reports_unknown_total", "reports_dropped_total"}
	want := map[string]float64{
		"reports_total heartbeat": 2, "reports_total load": 1, "reports_unknown_total": 1, "reports_dropped_total": 0,
		"reports_refused_total replayed": 3, "reports_refused_total forged": 1, "reports_refused_total key": 2,
		"reports_refused_total clock": 1, "reports_refused_total malformed": 1,
	}
	var got map[string]float64
	until(t, "all is counted", func() bool {
		got = scrape(t, h.Dispatcher, names...)
		return got["reports_unknown_total"] > 0 && got["reports_refused_total malformed"] > 0
	})
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if v := h.management.of(h.backend("b1").node); !v.state.Serves() {
		t.Errorf("b1 is %v: a forged heartbeat counts", v.state)
	}
}

// TestMetricsAreDocumented: an operator finds every metric, with its labels, in the documentation.
func TestMetricsAreDocumented(t *testing.T) {
	text, err := os.ReadFile("../docs/dispatcher.md")
	if err != nil {
		t.Fatal(err)
	}
	descriptions := make(chan *prometheus.Desc)
	go func() {
		defer close(descriptions)
		New(standing(t), nil).count.registry.Describe(descriptions)
	}()
	pattern := regexp.MustCompile(`fqName: "rehome_dispatcher_(\w+)".*variableLabels: (\{[^}]*\})`)
	n := 0
	for d := range descriptions {
		m := pattern.FindStringSubmatch(d.String())
		if m == nil {
			t.Errorf("not a metric of the dispatcher's: %v", d)
			continue
		}
		n++
		if name := m[1] + strings.TrimSuffix(m[2], "{}"); !strings.Contains(string(text), "`"+name+"`") {
			t.Errorf("docs/dispatcher.md does not name `%s`", name)
		}
	}
	if n < 40 {
		t.Errorf("%d metrics, want all of them", n)
	}
}
