// SPDX-License-Identifier: Apache-2.0

package dispatcher

import "github.com/prometheus/client_golang/prometheus"

// trust tells Prometheus what others have told this dispatcher, and what of it was refused. All of it is counted by whoever has heard it.
type trust struct {
	d *Dispatcher

	heartbeats, vectors, refused, strangers      *prometheus.Desc
	gateways, reports, unwanted, refusedMessages *prometheus.Desc
}

func newTrust(d *Dispatcher) *trust {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("rehome_dispatcher_"+name, help, labels, nil)
	}
	return &trust{
		d:               d,
		heartbeats:      desc("heartbeats_total", "Heartbeats that were genuine and new."),
		vectors:         desc("load_vectors_total", "Load vectors that were genuine and new."),
		refused:         desc("reports_refused_total", "Datagrams at the reports' port that were refused: forged, replayed, key (unknown, or another host's), clock, malformed.", "reason"),
		strangers:       desc("reports_of_strangers_total", "Genuine heartbeats of hosts that are no backends."),
		gateways:        desc("gateways", "Gateways that are connected."),
		reports:         desc("gateway_reports_total", "Reports of gateways that were installed."),
		unwanted:        desc("gateway_reports_rejected_total", "Reports of gateways that could not be installed, as of flows that no session has."),
		refusedMessages: desc("gateway_messages_refused_total", "Messages of gateways that no gateway sends, each of which ended its connection."),
	}
}

// Describe implements prometheus.Collector.
func (c *trust) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.heartbeats, c.vectors, c.refused, c.strangers, c.gateways, c.reports, c.unwanted, c.refusedMessages} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *trust) Collect(ch chan<- prometheus.Metric) {
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	if m := c.d.management; m != nil {
		s := m.monitor.Stats()
		counter(c.heartbeats, s.Heartbeats)
		counter(c.vectors, s.Vectors)
		counter(c.strangers, s.Strangers)
		for reason, n := range s.Refused {
			counter(c.refused, n, reason)
		}
	}
	if s := c.d.sessions; s != nil {
		g := s.gateways.Stats()
		ch <- prometheus.MustNewConstMetric(c.gateways, prometheus.GaugeValue, float64(g.Links))
		counter(c.reports, g.Reports)
		counter(c.unwanted, g.Rejected)
		counter(c.refusedMessages, g.Refused)
	}
}
