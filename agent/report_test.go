// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rehome-net/rehome/agent/report"
	"github.com/rehome-net/rehome/handoff/vitals"
	"github.com/rehome-net/rehome/handoff/wire"
)

// heard is a reporter that remembers what it is to say.
type heard struct {
	down    map[string]bool
	loads   map[string]float64
	failure time.Time
}

func (h *heard) Run(context.Context) error { return nil }
func (h *heard) Stats() report.Stats       { return report.Stats{Heartbeats: 5, Late: time.Millisecond} }
func (h *heard) Announce(at time.Time)     { h.failure = at }
func (h *heard) Retract()                  { h.failure = time.Time{} }

func (h *heard) SetDown(name string, down bool) {
	delete(h.down, name)
	if down {
		h.down[name] = true
	}
}

func (h *heard) SetLoad(name string, load float64) {
	h.loads[name] = load
	if math.IsNaN(load) {
		delete(h.loads, name)
	}
}

// reportingEngine is an engine whose reports are heard, and an application of service s.
func reportingEngine(t *testing.T, watch ...string) (*engine, *heard, func() *application) {
	t.Helper()
	e := testEngine(t, "b", "a", "b")
	h := &heard{down: map[string]bool{}, loads: map[string]float64{}}
	e.reporter = h
	e.cfg.Report.Watch = watch
	return e, h, func() *application {
		mine, theirs := net.Pipe()
		t.Cleanup(func() { _ = theirs.Close() })
		a := &application{e: e, serial: newID(), link: wire.NewLink(mine), services: map[string]*wire.Register{}}
		e.apps[a] = struct{}{}
		a.register(1, &wire.Register{Service: e.cfg.Services[0].Name})
		return a
	}
}

// TestApplicationLoad: what applications say is passed on, each by its own name, and forgotten with them.
func TestApplicationLoad(t *testing.T) {
	e, h, start := reportingEngine(t)
	service := e.cfg.Services[0].Name
	one, other := start(), start()
	one.load(&wire.Load{Service: service, Load: 2500})
	other.load(&wire.Load{Service: service, Load: 10_000, Down: true})
	other.load(&wire.Load{Service: "another's", Load: 1})
	if d := cmp.Diff(map[string]float64{one.label(service): 0.25, other.label(service): 1}, h.loads); d != "" {
		t.Errorf("loads (-want +got):\n%s", d)
	}
	if !maps.Equal(h.down, map[string]bool{other.label(service): true}) {
		t.Errorf("down: %v", h.down)
	}
	one.load(&wire.Load{Service: service, Unknown: true})
	other.lost(nil)
	if len(h.loads)+len(h.down) > 0 {
		t.Errorf("loads %v, down %v, and nobody says anything any more", h.loads, h.down)
	}
}

// TestWatchedApplication: when the last application of a watched service is gone, the host is down at once, until one is back.
func TestWatchedApplication(t *testing.T) {
	for _, watched := range []bool{true, false} {
		var watch []string
		if watched {
			watch = []string{"s"}
		}
		e, h, start := reportingEngine(t, watch...)
		if name := e.cfg.Services[0].Name; name != "s" {
			t.Fatalf("the service is called %q", name)
		}
		one, other := start(), start()
		one.load(&wire.Load{Service: "s", Load: 1, Down: true})
		one.lost(nil)
		if len(h.down) > 0 {
			t.Errorf("watched %v: down %v, although one is left", watched, h.down)
		}
		other.lost(nil)
		if h.down["s"] != watched {
			t.Errorf("watched %v: down %v without any application", watched, h.down)
		}
		start()
		if len(h.down) > 0 {
			t.Errorf("watched %v: down %v, although one is back", watched, h.down)
		}
	}
}

// TestDrainIsAnnounced: dispatchers hear of a drain as of a failure planned for a time that never comes.
func TestDrainIsAnnounced(t *testing.T) {
	e, h, _ := reportingEngine(t)
	e.reporter = nil
	e.draining = true
	e.reportDraining() // nobody to tell
	e.reporter = h
	e.reportDraining()
	if until := time.Until(h.failure); until < 10*vitals.MaxPlan {
		t.Errorf("fails in %v", until)
	}
	e.draining = false
	e.reportDraining()
	if !h.failure.IsZero() {
		t.Errorf("fails at %v after the drain", h.failure)
	}
}

// TestFailureIsAnnounced: what an operator announces comes before a drain, whichever is first, and taking it back leaves the drain.
func TestFailureIsAnnounced(t *testing.T) {
	e, h, _ := reportingEngine(t)
	at := time.Now().Add(time.Minute)
	if err := e.announceFailure(at); err != nil || !h.failure.Equal(at) {
		t.Fatalf("fails at %v, %v; want %v", h.failure, err, at)
	}
	if got := e.status(time.Now()).GetFailureUnixMillis(); got != at.UnixMilli() {
		t.Errorf("an operator sees %d, want %d", got, at.UnixMilli())
	}
	e.draining = true
	e.reportDraining()
	if !h.failure.Equal(at) {
		t.Errorf("a drain has moved it to %v", h.failure)
	}
	if err := e.announceFailure(time.Time{}); err != nil || time.Until(h.failure) < 10*vitals.MaxPlan {
		t.Errorf("fails at %v, %v; want the drain's far time", h.failure, err)
	}
	e.draining = false
	e.reportDraining()
	if !h.failure.IsZero() || e.status(time.Now()).GetFailureUnixMillis() != 0 {
		t.Errorf("fails at %v although nothing is left of it", h.failure)
	}
	e.reporter = nil
	if err := e.announceFailure(at); !errors.Is(err, errNoReports) || !e.failure.IsZero() {
		t.Errorf("without dispatchers: error %v, at %v", err, e.failure)
	}
}

func TestReporterMetrics(t *testing.T) {
	m := newMetrics()
	m.watchReporter(nil)
	m.watchReporter(&heard{})
	families, err := m.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		if c := f.GetMetric()[0]; strings.Contains(f.GetName(), "heartbeat") {
			got[f.GetName()] = c.GetCounter().GetValue() + c.GetGauge().GetValue()
		}
	}
	want := map[string]float64{"rehome_heartbeats_total": 5, "rehome_heartbeats_skipped_total": 0, "rehome_heartbeat_late_seconds": 0.001}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

const reportSection = `
report:
  host: 7
  dispatchers: ["10.0.0.2:7072"]
  keys: /etc/rehome/report.keys
  interval: 10ms
  watch: [files]
`

func TestReportConfig(t *testing.T) {
	c, err := ReadConfig(strings.NewReader(goodConfig + reportSection))
	if err != nil {
		t.Fatal(err)
	}
	r := c.reporterConfig()
	if r.Host != 7 || r.Interval != 10*time.Millisecond || len(r.Services) != 2 || len(r.Watch) != 2 {
		t.Errorf("%+v", r)
	}
	for _, tt := range []struct{ old, new, want string }{
		{"host: 7", "", "report.host: missing"},
		{`dispatchers: ["10.0.0.2:7072"]`, "", "report.dispatchers: missing"},
		{`"10.0.0.2:7072"`, `"0.0.0.0:7072"`, "report.dispatchers: 0.0.0.0"},
		{`"10.0.0.2:7072"`, `"front:7072"`, "front"},
		{"keys: /etc/rehome/report.keys", "", "report.keys: missing"},
		{"interval: 10ms", "interval: 10us", "report.interval: 10µs"},
		{"interval: 10ms", "load_interval: 1ms", "report.load_interval: 1ms"},
		{"watch: [files]", "watch: [mail]", `report.watch: "mail" is none of the services`},
		{"host: 7", "hots: 7", "field hots not found"},
	} {
		if _, err := ReadConfig(strings.NewReader(goodConfig + strings.Replace(reportSection, tt.old, tt.new, 1))); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: %v, want %q", tt.new, err, tt.want)
		}
	}
}

// TestReportNeedsRestart holds that every key of the section counts.
func TestReportNeedsRestart(t *testing.T) {
	read := func(section string) *Config {
		t.Helper()
		c, err := ReadConfig(strings.NewReader(goodConfig + section))
		if err != nil {
			t.Fatal(err)
		}
		return &c
	}
	old := read(reportSection + "  key: 2\n")
	if err := needRestart(old, read(reportSection+"  key: 2\n")); err != nil {
		t.Errorf("nothing has changed: %v", err)
	}
	for _, section := range []string{
		"", reportSection, reportSection + "  key: 3\n", reportSection + "  key: 2\n  load_interval: 1s\n",
		strings.Replace(reportSection, "host: 7", "host: 8", 1) + "  key: 2\n", strings.Replace(reportSection, "7072", "7073", 1) + "  key: 2\n",
		strings.Replace(reportSection, "report.keys", "keys", 1) + "  key: 2\n", strings.Replace(reportSection, "10ms", "20ms", 1) + "  key: 2\n",
		strings.Replace(reportSection, "watch: [files]", "key: 2", 1),
	} {
		if err := needRestart(old, read(section)); err == nil || !strings.Contains(err.Error(), "report") {
			t.Errorf("%s: %v", section, err)
		}
	}
}

func TestReportKey(t *testing.T) {
	secret := strings.Repeat("a5", 16)
	path := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(path, fmt.Appendf(nil, "1 8 %s\n2 * %s\n3 7 %s\n", secret, secret, secret), 0o600); err != nil {
		t.Fatal(err)
	}
	number := func(n uint16) *uint16 { return &n }
	for _, tt := range []struct {
		host uint32
		key  *uint16
		want uint16
		ok   bool
	}{{7, nil, 2, true}, {8, nil, 1, true}, {7, number(3), 3, true}, {7, number(1), 0, false}, {7, number(9), 0, false}} {
		k, err := (&ReportConfig{Host: tt.host, Keys: path, Key: tt.key}).key()
		if k.ID != tt.want || (err == nil) != tt.ok {
			t.Errorf("host %d: key %d, %v, want %d", tt.host, k.ID, err, tt.want)
		}
	}
	if _, err := (&ReportConfig{Keys: path + "x"}).key(); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("%v", err)
	}
}

func TestCheckReport(t *testing.T) {
	if found := checkReport(&Config{}); found != nil {
		t.Errorf("%+v, and nobody is to hear of this host", found)
	}
	path := filepath.Join(t.TempDir(), "keys")
	cfg := &Config{Report: ReportConfig{Host: 7, Dispatchers: []netip.AddrPort{testAddress()}, Keys: path}}
	if found := checkReport(cfg); found[0].OK || !strings.Contains(found[0].Detail, "no such file") || found[0].Advice == "" {
		t.Errorf("%+v without a key file", found[0])
	}
	if err := os.WriteFile(path, []byte("3 7 "+strings.Repeat("a5", 16)), 0o600); err != nil {
		t.Fatal(err)
	}
	found := checkReport(cfg)
	if !found[0].OK || !strings.Contains(found[0].Detail, "key 3") {
		t.Errorf("%+v", found[0])
	}
	if !found[1].Optional || found[1].OK != (found[1].Advice == "") {
		t.Errorf("%+v", found[1])
	}
}
