// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/rehome-net/rehome/agent/report"
	"github.com/rehome-net/rehome/handoff/realtime"
	"github.com/rehome-net/rehome/handoff/vitals"
	"github.com/rehome-net/rehome/handoff/wire"
)

// drainTime is when a host fails that is being drained: further off than can be told, so that it stays so.
const drainTime = 100 * 365 * 24 * time.Hour

// ReportConfig says which dispatchers hear of this host. The zero value: none.
type ReportConfig struct {
	// Host is this host's number, as the dispatchers know it.
	Host uint32 `yaml:"host"`
	// Dispatchers are the UDP addresses that reports go to, ip:port.
	Dispatchers []netip.AddrPort `yaml:"dispatchers,omitempty"`
	// Keys is the file with the keys that dispatchers know; see vitals.ReadKeys.
	Keys string `yaml:"keys"`
	// Key is the number of the one that this host uses; the file's first that it may use when left out.
	Key *uint16 `yaml:"key,omitempty"`
	// Interval is the time between heartbeats (100 ms). Dispatchers must expect the same.
	Interval time.Duration `yaml:"interval"`
	// LoadInterval is the time between load vectors (200 ms).
	LoadInterval time.Duration `yaml:"load_interval"`
	// Watch are services without which this host is of no use: when nobody listens at their addresses, or the application that had
	// registered one is gone, dispatchers hear that the application is down.
	Watch []string `yaml:"watch,omitempty"`
}

func (c *ReportConfig) equal(o *ReportConfig) bool {
	sameKey := c.Key == nil && o.Key == nil || c.Key != nil && o.Key != nil && *c.Key == *o.Key
	return c.Host == o.Host && slices.Equal(c.Dispatchers, o.Dispatchers) && c.Keys == o.Keys && sameKey && c.Interval == o.Interval &&
		c.LoadInterval == o.LoadInterval && slices.Equal(c.Watch, o.Watch)
}

// validateReport looks at the report section as a whole; what it names must be there.
func (c *Config) validateReport() error {
	r := &c.Report
	if len(r.Dispatchers) == 0 {
		if !r.equal(&ReportConfig{}) {
			return errors.New("dispatchers: missing: nobody would hear the reports")
		}
		return nil
	}
	if r.Keys == "" {
		return errors.New("keys: missing: reports are authenticated; a key is one line: 1 * followed by the output of openssl rand -hex 32")
	}
	for _, name := range r.Watch {
		if !slices.ContainsFunc(c.Services, func(s ServiceConfig) bool { return s.Name == name }) {
			return fmt.Errorf("watch: %q is none of the services", name)
		}
	}
	return c.reporterConfig().Validate()
}

// reporterConfig is the configuration for package report, but for the key, which is read at the start.
func (c *Config) reporterConfig() report.Config {
	to := report.Config{
		Host: c.Report.Host, Dispatchers: c.Report.Dispatchers, Interval: c.Report.Interval, LoadInterval: c.Report.LoadInterval,
	}
	for _, s := range c.Services {
		if !slices.Contains(s.Servers, c.Host) {
			continue
		}
		to.Services = append(to.Services, s.Addresses...)
		if slices.Contains(c.Report.Watch, s.Name) {
			to.Watch = append(to.Watch, s.Addresses...)
		}
	}
	return to
}

// key reads the key that this host signs with.
func (c *ReportConfig) key() (vitals.Key, error) {
	f, err := os.Open(c.Keys)
	if err != nil {
		return vitals.Key{}, fmt.Errorf("keys: %w", err)
	}
	defer f.Close() //nolint:errcheck // read only
	keys, err := vitals.ReadKeys(f)
	if err != nil {
		return vitals.Key{}, fmt.Errorf("keys: %s: %w", c.Keys, err)
	}
	i := slices.IndexFunc(keys, func(k vitals.Key) bool {
		return (c.Key == nil || *c.Key == k.ID) && (k.Host == 0 || k.Host == c.Host)
	})
	if i < 0 {
		return vitals.Key{}, fmt.Errorf("keys: %s: no such key for host %d", c.Keys, c.Host)
	}
	return keys[i], nil
}

// reporter tells dispatchers of this host: a report.Reporter or a report.Process.
type reporter interface {
	Run(ctx context.Context) error
	Stats() report.Stats
	SetDown(name string, down bool)
	SetLoad(name string, load float64)
	Announce(at time.Time)
	Retract()
}

// SetReportCommand has heartbeats sent by a process of their own, whose main calls report.Serve. Without it this one sends them, and they
// may be late when it is busy. Call it before Run.
func (a *Agent) SetReportCommand(command []string) { a.reportCommand = command }

// openReporter returns nil when nobody is to hear of this host.
func (a *Agent) openReporter() (reporter, error) {
	if len(a.cfg.Report.Dispatchers) == 0 {
		return nil, nil //nolint:nilnil // see above
	}
	c := a.cfg.reporterConfig()
	c.Logger = a.log
	var err error
	if c.Key, err = a.cfg.Report.key(); err != nil {
		return nil, err
	}
	if len(a.reportCommand) > 0 {
		return report.NewProcess(c, a.reportCommand)
	}
	return report.New(c)
}

// load is what an application says of itself.
func (a *application) load(m *wire.Load) {
	if a.e.reporter == nil || a.services[m.Service] == nil {
		return
	}
	if a.reported == nil {
		a.reported = make(map[string]bool)
	}
	a.reported[m.Service] = true
	load := float64(m.Load) / 10_000
	if m.Unknown {
		load = math.NaN()
	}
	a.e.reporter.SetLoad(a.label(m.Service), load)
	a.e.reporter.SetDown(a.label(m.Service), m.Down)
}

// label names one application's service to the reporter.
func (a *application) label(service string) string {
	return service + " #" + strconv.FormatUint(a.serial, 10)
}

// unreport forgets what an application that is gone has said, and says that it is gone where that matters.
func (a *application) unreport() {
	if a.e.reporter == nil {
		return
	}
	for service := range a.services {
		if slices.Contains(a.e.cfg.Report.Watch, service) && !a.e.registered(service) {
			a.e.reporter.SetDown(service, true)
		}
	}
	for service := range a.reported {
		a.e.reporter.SetLoad(a.label(service), math.NaN())
		a.e.reporter.SetDown(a.label(service), false)
	}
}

// served notes that an application has registered a service.
func (e *engine) served(service string) {
	if e.reporter != nil {
		e.reporter.SetDown(service, false)
	}
}

// registered reports whether an application that is there has registered a service.
func (e *engine) registered(service string) bool {
	for a := range e.apps {
		if a.services[service] != nil {
			return true
		}
	}
	return false
}

// errNoReports means that nobody would hear what an operator wants to announce.
var errNoReports = errors.New("this host reports to no dispatcher: give report.dispatchers in the agent's configuration")

// announceFailure has dispatchers drain this host now and take it out at that time (SARA 27); the zero Time takes that back. An agent that is
// started again after the failure knows nothing of it.
func (e *engine) announceFailure(at time.Time) error {
	if e.reporter == nil {
		return errNoReports
	}
	e.failure = at
	e.reportDraining()
	return nil
}

// reportDraining tells dispatchers that this host wants no new sessions, or wants them again.
func (e *engine) reportDraining() {
	switch {
	case e.reporter == nil:
	case !e.failure.IsZero():
		e.reporter.Announce(e.failure)
	case e.draining:
		e.reporter.Announce(time.Now().Add(drainTime))
	default:
		e.reporter.Retract()
	}
}

// checkReport looks at what reporting needs.
func checkReport(cfg *Config) []Finding {
	if len(cfg.Report.Dispatchers) == 0 {
		return nil
	}
	key := Finding{What: "report.keys", Advice: "the same file as at the dispatchers: lines of ID HOST SECRET"}
	if k, err := cfg.Report.key(); err != nil {
		key.Detail = err.Error()
	} else {
		key = Finding{What: key.What, OK: true, Detail: fmt.Sprintf("%s, key %d", cfg.Report.Keys, k.ID)}
	}
	first := Finding{What: "heartbeats go first", Optional: true}
	granted := make(chan error)
	go func() {
		_, err := realtime.Enter() // the thread ends with the goroutine
		granted <- err
	}()
	if err := <-granted; err != nil {
		first.Detail = err.Error()
		first.Advice = "run as root, or give the agent CAP_SYS_NICE; without it report.interval should be 100ms or more"
	} else {
		first.OK, first.Detail = true, "real-time priority"
	}
	return []Finding{key, first}
}
