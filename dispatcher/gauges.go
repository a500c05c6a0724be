// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/rehome-net/rehome/dispatcher/forward"
	"github.com/rehome-net/rehome/dispatcher/health"
)

// gauges tell Prometheus how things are at the moment of its question. What is counted as it happens is in counters.
type gauges struct {
	d *Dispatcher

	flows, maxFlows, pressure, forwarded, full, unreachable, refused, degraded *prometheus.Desc
	peeking, connections                                                       *prometheus.Desc
	active, up, reported                                                       *prometheus.Desc
	weight, drained, healthy, unable                                           *prometheus.Desc
	load, threshold, share                                                     *prometheus.Desc
}

func newGauges(d *Dispatcher) *gauges {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("rehome_dispatcher_"+name, help, labels, nil)
	}
	return &gauges{
		d:           d,
		flows:       desc("flows", "Entries of the flow table at the last sweep."),
		maxFlows:    desc("flows_max", "Entries that there is room for, in each IP version."),
		pressure:    desc("table_pressure", "Share of the flow table in use, of the fuller IP version; refusals begin at 0.84 or more."),
		forwarded:   desc("forwarded_packets_total", "Packets sent on to backends."),
		full:        desc("table_full_total", "New connections that were dropped because the flow table was full."),
		unreachable: desc("unreachable_packets_total", "Packets dropped because their backend is not known at layer 2."),
		refused:     desc("refused_packets_total", "First packets of connections and flows that admission had the kernel drop."),
		degraded:    desc("degraded_packets_total", "Packets of established sessions that admission had the kernel drop."),
		peeking:     desc("peeking", "Connections whose first request is not known yet.", "service"),
		connections: desc("service_active", "Connections that have been handed off, as far as this process knows.", "service"),
		active:      desc("backend_active", "Connections of a backend, as far as this process knows.", "backend"),
		up:          desc("backend_up", "Whether a backend's agent can be asked.", "backend"),
		reported:    desc("backend_reported_sessions", "Connections that a backend says it serves; absent while it sends no load vectors.", "backend"),
		weight:      desc("backend_weight", "The weight that counts.", "pool", "backend"),
		drained:     desc("backend_drained", "Whether a backend gets no new connections because an operator, here or at its host, wants so.", "pool", "backend"),
		healthy:     desc("backend_healthy", "Whether checks find a backend well; absent without checks, and before the first.", "pool", "backend"),
		load:        desc("admission_load", "The load that admission's last decision was made by (x of SARA's eq. 2); absent without admission."),
		threshold:   desc("admission_threshold", "The thresholds of that decision, t1 to c: t2 and t3 move.", "threshold"),
		share:       desc("admission_refused_share", "The share of first packets (flows: new), and of packets of established sessions (established), that it has refused.", "flows"),
		unable:      desc("backend_unable", "Whether a backend's host says that it cannot make connections for unmodified servers; only of pools that need it.", "pool", "backend"),
	}
}

// Describe implements prometheus.Collector.
func (g *gauges) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		g.flows, g.maxFlows, g.pressure, g.forwarded, g.full, g.unreachable, g.refused, g.degraded, g.peeking, g.connections, g.active, g.up, g.reported, g.weight, g.drained, g.healthy, g.unable,
		g.load, g.threshold, g.share,
	} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (g *gauges) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	counter := func(d *prometheus.Desc, v uint64) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v))
	}
	stats := g.d.stats()
	gauge(g.flows, float64(stats.Flows))
	gauge(g.maxFlows, float64(g.d.cfg.Forward.MaxFlows))
	gauge(g.pressure, stats.Pressure)
	counter(g.forwarded, stats.Forwarded)
	counter(g.full, stats.Full)
	counter(g.unreachable, stats.NoNode)
	counter(g.refused, stats.Refused)
	counter(g.degraded, stats.Degraded)
	live := g.d.live.Load()
	if live == nil {
		return
	}
	if m := g.d.management; m != nil && m.policy != nil {
		a := m.decision.Load()
		gauge(g.load, a.Load)
		for name, at := range map[string]float64{"t1": a.Thresholds.T1, "t2": a.Thresholds.T2, "t3": a.Thresholds.T3, "c": a.Thresholds.C} {
			gauge(g.threshold, at, name)
		}
		gauge(g.share, a.New, "new")
		gauge(g.share, a.Established, "established")
	}
	for _, s := range live.services {
		gauge(g.peeking, float64(s.peeking.Load()), s.cfg.Name)
		gauge(g.connections, float64(s.active.Load()), s.cfg.Name)
	}
	for name, b := range live.backends {
		gauge(g.active, float64(b.active.Load()), name)
		gauge(g.up, number(b.up()), name)
		if m := g.d.management; m != nil {
			if v := m.of(b.node); v.known {
				gauge(g.reported, float64(v.sessions), name)
			}
		}
	}
	for name, p := range live.pools {
		for _, m := range p.members {
			now := m.message()
			gauge(g.weight, float64(now.GetWeight()), name, m.name)
			gauge(g.drained, number(now.GetDrained() || now.GetDraining()), name, m.name)
			if m.injected {
				gauge(g.unable, number(m.unable() != ""), name, m.name)
			}
			if c := m.condition; c != nil && c.get() != health.Unknown {
				gauge(g.healthy, number(c.get() == health.Up), name, m.name)
			}
		}
	}
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// stats returns what the packet path has counted, if it counts.
func (d *Dispatcher) stats() forward.Stats {
	if c, ok := d.path.(interface{ Stats() forward.Stats }); ok {
		return c.Stats()
	}
	return forward.Stats{}
}
