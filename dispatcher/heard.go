// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/rehome-net/rehome/dispatcher/gateway"
	"github.com/rehome-net/rehome/dispatcher/monitor"
)

// heard tells Prometheus what hosts have said, by reports and as gateways, and what of it was not believed; and what clients have said while they were
// handed off. Reports are absent without `reports`, gateways without services of sessions, what was held with nftables.
type heard struct {
	d *Dispatcher

	reports, refused, strangers, dropped, blind, blindSeconds, late *prometheus.Desc
	said, unwanted, malformed, gateways                             *prometheus.Desc
	held, overflow                                                  *prometheus.Desc
}

// reportReasons are those of vitals.Reason: each is told from the beginning, so that its first increase is one.
func reportReasons() []string { return []string{"clock", "forged", "key", "malformed", "replayed"} }

func newHeard(d *Dispatcher) *heard {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("rehome_dispatcher_"+name, help, labels, nil)
	}
	return &heard{
		d:            d,
		reports:      desc("reports_total", "Genuine heartbeats and load vectors.", "kind"),
		refused:      desc("reports_refused_total", "Datagrams at the reports' port that were not believed, by reason.", "reason"),
		strangers:    desc("reports_unknown_total", "Genuine heartbeats of hosts that are no peers."),
		dropped:      desc("reports_dropped_total", "Reports that the kernel dropped because they came faster than they were read."),
		blind:        desc("reports_blind_total", "How often the thread that watches hosts did not run when it should have."),
		blindSeconds: desc("reports_blind_seconds_total", "For how long it did not."),
		late:         desc("reports_late_seconds", "The longest time that a report waited to be read."),
		said:         desc("gateway_reports_total", "Gateways' reports whose flows were installed."),
		unwanted:     desc("gateway_reports_rejected_total", "Gateways' reports whose flows could not be installed."),
		malformed:    desc("gateway_messages_refused_total", "Messages of gateways that no gateway sends; each ends its connection."),
		gateways:     desc("gateways", "Gateways that are connected."),
		held:         desc("held_bytes", "Memory that clients' packets take while their connections are handed off."),
		overflow:     desc("held_dropped_total", "Packets that were dropped during a handoff, by the bound that was reached.", "bound"),
	}
}

// Describe implements prometheus.Collector.
func (h *heard) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		h.reports, h.refused, h.strangers, h.dropped, h.blind, h.blindSeconds, h.late, h.said, h.unwanted, h.malformed, h.gateways, h.held, h.overflow,
	} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (h *heard) Collect(ch chan<- prometheus.Metric) {
	if h.d.live.Load() == nil {
		return // Run is still making what is asked below
	}
	if p, ok := h.d.path.(*kernelPath); ok && p.gate != nil {
		s := p.gate.Stats()
		ch <- prometheus.MustNewConstMetric(h.held, prometheus.GaugeValue, float64(s.Kept))
		counting(ch)(h.overflow, float64(s.Overflow-s.Crowded), "flow")
		counting(ch)(h.overflow, float64(s.Crowded), "total")
	}
	if m := h.d.management; m != nil {
		h.collectReports(ch, m.monitor.Stats())
	}
	if s := h.d.sessions; s != nil {
		h.collectGateways(ch, s.gateways.Stats())
	}
}

func (h *heard) collectReports(ch chan<- prometheus.Metric, s monitor.Stats) {
	counter := counting(ch)
	counter(h.reports, float64(s.Heartbeats), "heartbeat")
	counter(h.reports, float64(s.Vectors), "load")
	for _, reason := range reportReasons() {
		counter(h.refused, float64(s.Refused[reason]), reason)
	}
	counter(h.strangers, float64(s.Strangers))
	counter(h.dropped, float64(s.Dropped))
	counter(h.blind, float64(s.Blind))
	counter(h.blindSeconds, s.BlindTime.Seconds())
	ch <- prometheus.MustNewConstMetric(h.late, prometheus.GaugeValue, s.Late.Seconds())
}

func (h *heard) collectGateways(ch chan<- prometheus.Metric, s gateway.ServerStats) {
	counter := counting(ch)
	counter(h.said, float64(s.Reports))
	counter(h.unwanted, float64(s.Rejected))
	counter(h.malformed, float64(s.Refused))
	ch <- prometheus.MustNewConstMetric(h.gateways, prometheus.GaugeValue, float64(s.Links))
}

func counting(ch chan<- prometheus.Metric) func(*prometheus.Desc, float64, ...string) {
	return func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, labels...)
	}
}
