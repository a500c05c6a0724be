// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/rehome-net/rehome/dispatcher"
	"github.com/rehome-net/rehome/handoff"
)

// OverloadConfig describes the scene "overload": more sessions come than servers can complete. Its zero value is the demo's, but for Command.
type OverloadConfig struct {
	// Command is how to run rehome, as in ClusterConfig.
	Command []string
	// Lab is the lab's name; "overload" when empty.
	Lab string
	// Policies are what to compare; all of OverloadPolicies when empty.
	Policies []OverloadPolicy
	// Seeds are those of the sessions that come; each policy has a run for each of them, with the same sessions. 1, 2 and 3 when empty.
	Seeds []uint64
	// Offered is the load in units of what the servers can complete; 2 when zero.
	Offered float64
	// Length is how long sessions come in one run; 6 s when zero. What ends in the first WarmUp, 3 s when zero, is left out of the figures.
	Length, WarmUp time.Duration
	// Workers is how many requests a server serves at a time, 2 when zero, each for ServiceTime, 10 ms when zero.
	Workers     int
	ServiceTime time.Duration
	// Requests is the mean of a session's requests, 6 when zero, Think that of the pauses between them, 150 ms when zero. Who waits for an answer for
	// longer than Patience, 400 ms when zero, gives up.
	Requests        int
	Think, Patience time.Duration
	// Connections bounds each server's with leastconn503; bestBound when zero.
	Connections int
	// Thresholds are T1, T2, T3 and C of static, request and sa2c; admission's defaults when all are zero.
	Thresholds [4]float64
	// Surge is for how long the reported load is above T3 in a second act of the policy udp, 1 s when zero; negative leaves the act out. It begins after a third
	// of Length.
	Surge time.Duration
	// Report gets progress; may be nil.
	Report io.Writer
	// LogLevel is that of rehome's processes.
	LogLevel string
}

func (c OverloadConfig) withDefaults() OverloadConfig {
	setDefault(&c.Lab, "overload")
	setDefault(&c.Offered, 2)
	setDefault(&c.Length, 6*time.Second)
	setDefault(&c.WarmUp, 3*time.Second)
	setDefault(&c.Workers, 2)
	setDefault(&c.ServiceTime, 10*time.Millisecond)
	setDefault(&c.Requests, 6)
	setDefault(&c.Think, 150*time.Millisecond)
	setDefault(&c.Patience, 400*time.Millisecond)
	setDefault(&c.Connections, c.bestBound())
	setDefault(&c.Surge, time.Second)
	if len(c.Policies) == 0 {
		c.Policies = OverloadPolicies()
	}
	if len(c.Seeds) == 0 {
		c.Seeds = []uint64{1, 2, 3}
	}
	if c.Report == nil {
		c.Report = io.Discard
	}
	return c
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

func (c OverloadConfig) validate() error {
	switch {
	case !(c.Offered > 0):
		return fmt.Errorf("overload: offered: %v: want more than 0", c.Offered)
	case c.WarmUp < 0 || c.Length <= c.WarmUp:
		return fmt.Errorf("overload: length %v and warm-up %v: want 0 <= warm-up < length", c.Length, c.WarmUp)
	case c.Workers < 1 || c.Requests < 1:
		return fmt.Errorf("overload: %d workers, %d requests: want 1 or more", c.Workers, c.Requests)
	case c.ServiceTime < 0 || c.Think < 0 || c.Patience < 0:
		return errors.New("overload: times: want more than 0")
	case c.Surge > c.Length/3:
		return fmt.Errorf("overload: surge: %v: want a third of the length, %v, at most", c.Surge, c.Length)
	}
	for _, p := range c.Policies {
		if _, err := p.setup(c); err != nil {
			return err
		}
	}
	return nil
}

// Capacity is how many sessions per second so many servers could complete if none were ever idle and none worked in vain.
func (c OverloadConfig) Capacity(servers int) float64 {
	c = c.withDefaults()
	return float64(servers*c.Workers) / c.ServiceTime.Seconds() / float64(c.Requests)
}

// overload is the scene at work.
type overload struct {
	cfg     OverloadConfig
	lab     *managedLab
	servers []*queueServer
	// What serves datagrams, if a policy is of those.
	upstreams  []*upstream
	names      []*program
	neighbours []*handoff.Listener
	dialNames  dialer
	run        int // the number of the last one of datagrams
	result     OverloadResult
}

// Overload plays the scene: the same sessions of HTTP requests come for each policy, at about twice the rate at which the servers can complete them.
// The error says that the scene could not be played.
func Overload(ctx context.Context, cfg OverloadConfig) (_ *OverloadResult, err error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	datagrams := slices.ContainsFunc(cfg.Policies, OverloadPolicy.datagrams)
	if datagrams {
		if err := need("dnsmasq"); err != nil {
			return nil, err
		}
	}
	lab, err := startManaged(ctx, managedConfig{
		Command: cfg.Command, Lab: cfg.Lab, LogLevel: cfg.LogLevel, Service: queueService, Port: FilesPort,
		Others: map[string]uint16{namesService: DNSPort, neighbourService: neighbourPort},
	})
	if err != nil {
		return nil, err
	}
	o := &overload{cfg: cfg, lab: lab, result: newOverloadResult(cfg, len(lab.Servers()))}
	defer func() { err = errors.Join(err, o.stopServers(), lab.close()) }()
	if err := o.startServers(ctx); err != nil {
		return nil, err
	}
	if datagrams {
		if err := errors.Join(o.startNames(ctx), o.startNeighbours(ctx)); err != nil {
			return nil, err
		}
	}
	for _, p := range cfg.Policies {
		if err := o.policy(ctx, p); err != nil {
			return nil, fmt.Errorf("%s: %w", p, err)
		}
	}
	if slices.Contains(cfg.Policies, OverloadDatagram) && cfg.Surge > 0 {
		if err := o.surges(ctx); err != nil {
			return nil, err
		}
	}
	o.result.judge()
	return &o.result, ctx.Err()
}

func (o *overload) say(format string, args ...any) {
	_, _ = fmt.Fprintf(o.cfg.Report, "overload: "+format+"\n", args...)
}

// startServers starts one on each server's host, and returns when all have registered.
func (o *overload) startServers(ctx context.Context) error {
	for _, name := range o.lab.Servers() {
		h, err := o.lab.Lab.Host(name)
		if err != nil {
			return err
		}
		s, err := startQueueServer(ctx, h, fmt.Sprintf(":%d", FilesPort), AgentSocket(o.cfg.Lab, name),
			newQueue(o.cfg.Workers, o.cfg.ServiceTime), o.cfg.Patience)
		if err != nil {
			return err
		}
		o.servers = append(o.servers, s)
		err = o.lab.await(ctx, o.lab.agents[name], func(ctx context.Context) error {
			st, err := o.lab.Status(ctx, name)
			if err == nil && (len(st.GetServices()) == 0 || st.GetServices()[0].GetApplications() == 0) {
				err = fmt.Errorf("%s has not registered yet", queueService)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (o *overload) stopServers() error {
	var errs []error
	for _, p := range o.names {
		errs = append(errs, p.stop())
	}
	for _, u := range o.upstreams {
		errs = append(errs, u.close())
	}
	for _, l := range o.neighbours {
		errs = append(errs, l.Close())
	}
	for _, s := range o.servers {
		errs = append(errs, s.close())
	}
	return errors.Join(errs...)
}

// startNames starts a server of names on each server's host, in front of its queue.
func (o *overload) startNames(ctx context.Context) error {
	for i, name := range o.lab.Servers() {
		h, err := o.lab.Lab.Host(name)
		if err != nil {
			return err
		}
		u, err := startUpstream(ctx, h, o.servers[i])
		if err != nil {
			return err
		}
		o.upstreams = append(o.upstreams, u)
		p, err := o.lab.serveNames(ctx, name)
		if err != nil {
			return err
		}
		o.names = append(o.names, p)
	}
	return nil
}

// policy plays all runs of one policy.
func (o *overload) policy(ctx context.Context, p OverloadPolicy) error {
	setup, err := p.setup(o.cfg)
	if err != nil {
		return err
	}
	if setup.direct {
		return o.runs(ctx, p, o.client(o.direct(), setup))
	}
	return o.behind(ctx, setup, func() error {
		if setup.datagrams {
			return o.runs(ctx, p, o.querier(o.cfg.Patience, o.cfg.Patience)) // nobody asks again
		}
		return o.runs(ctx, p, o.client(o.lab.dial(o.lab.target()), setup))
	})
}

// behind does something while a dispatcher of that setup stands in front of the servers.
func (o *overload) behind(ctx context.Context, setup setup, do func() error) error {
	reports, err := o.lab.reports()
	if err != nil {
		return err
	}
	err = o.lab.startDispatcher(ctx, dispatcher.ModeHTTP, func(c *dispatcher.Config) {
		if setup.datagrams {
			o.lab.datagramService(c)
		}
		c.Pools[0].Balance = setup.balance
		c.Admission, c.Forecast = setup.admission, setup.forecast
		if setup.reports {
			c.Reports = reports
		}
	})
	if err != nil {
		return err
	}
	return errors.Join(do(), o.lab.stopDispatcher())
}

// querier returns a client of the servers of names.
func (o *overload) querier(patience, resend time.Duration) *querier {
	if o.dialNames == nil {
		o.dialNames = o.lab.dialNames()
	}
	return &querier{dial: o.dialNames, patience: patience, resend: resend}
}

func (o *overload) client(dial dialer, s setup) *patient {
	return &patient{dial: dial, patience: o.cfg.Patience, each: s.each, silent: s.silent}
}

// direct dials the servers' own addresses in turn.
func (o *overload) direct() dialer {
	var turn atomic.Uint64
	return func(ctx context.Context) (net.Conn, error) {
		names := o.lab.Servers()
		h, err := o.lab.Lab.Host(names[turn.Add(1)%uint64(len(names))])
		if err != nil {
			return nil, err
		}
		return o.lab.dial(netip.AddrPortFrom(h.Addr4(), FilesPort))(ctx)
	}
}

// visits returns the sessions of a seed, so many times what the servers can complete.
func (o *overload) visits(seed uint64, offered float64) []visit {
	return visits(seed, offered*o.cfg.Capacity(len(o.servers)), o.cfg.Length, o.cfg.Requests, o.cfg.Think)
}

// runs plays one run for each seed.
func (o *overload) runs(ctx context.Context, p OverloadPolicy, client player) error {
	for _, seed := range o.cfg.Seeds {
		if err := o.rest(ctx, client); err != nil {
			return fmt.Errorf("before the run of seed %d: %w", seed, err)
		}
		before := o.given()
		count, err := o.beginCount(ctx, client)
		if err != nil {
			return err
		}
		ends := client.play(ctx, o.visits(seed, o.cfg.Offered), o.cfg.Length)
		if err := ctx.Err(); err != nil {
			return err
		}
		if _, datagrams := client.(*querier); datagrams {
			o.tellLate(ends)
		}
		run := tallyRun(seed, ends, o.cfg.WarmUp, o.cfg.Length, o.given()-before)
		if run.Datagrams, run.Dropped, run.Degraded, err = count(ctx); err != nil {
			return err
		}
		o.result.Runs[p] = append(o.result.Runs[p], run)
		o.say("%s, seed %d: %.1f sessions/s completed; %d came, %d refused, %d given up, %d failed; %.0f %% of the work in vain",
			p, seed, run.Rate, run.Came, run.Refused, run.Late, run.Failed, 100*run.InVain)
		if run.Failed > 0 {
			o.say("%s, seed %d: first failure: %v", p, seed, firstFailure(ends))
		}
	}
	return o.rest(ctx, client)
}

// drops is what the dispatcher's kernel has refused, and the sessions that no server was found for.
type drops struct{ refused, degraded, unplaced int }

// dropped reads it; of clients that go to the servers themselves it is nothing.
func (o *overload) dropped(ctx context.Context) (d drops, err error) {
	if o.lab.front == nil {
		return d, nil
	}
	front, err := o.lab.Lab.Host(FrontHost)
	if err != nil {
		return d, err
	}
	families, err := scrape(ctx, front, frontMetrics)
	for name, to := range map[string]*int{"refused_packets": &d.refused, "degraded_packets": &d.degraded, "sessions_refused": &d.unplaced} {
		for _, m := range families["rehome_dispatcher_"+name+"_total"].GetMetric() {
			*to = int(m.GetCounter().GetValue())
		}
	}
	return d, err
}

// restLimit bounds how long a cluster takes to serve again after an overload.
const restLimit = 15 * time.Second

// rest waits until no server has anything left to do, and a session of one request is served.
func (o *overload) rest(ctx context.Context, client player) error {
	ctx, cancel := context.WithTimeout(ctx, restLimit)
	defer cancel()
	for _, s := range o.servers {
		if err := pause(ctx, s.wait()); err != nil {
			return fmt.Errorf("a server has a queue of %v: %w", s.wait(), err)
		}
	}
	for {
		err := client.probe(ctx)
		if err == nil {
			return nil
		}
		if pause(ctx, 20*time.Millisecond) != nil {
			return fmt.Errorf("no session is served after the overload: %w", err)
		}
	}
}

// given is how many requests the servers have been given.
func (o *overload) given() int {
	n := 0
	for _, s := range o.servers {
		n += s.given()
	}
	return n
}
