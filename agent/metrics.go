// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/rehome-net/rehome/agent/report"
)

// metrics are what the agent tells Prometheus.
type metrics struct {
	registry *prometheus.Registry

	moves    *prometheus.CounterVec
	freeze   prometheus.Histogram
	total    prometheus.Histogram
	held     prometheus.Counter
	taken    prometheus.Counter
	rejected prometheus.Counter
	// told and untold count connections that ended here, forgotten those that ended elsewhere and were forgotten here.
	told, untold, forgotten prometheus.Counter
}

func newMetrics() *metrics {
	// From 10 us to about 5 s.
	buckets := prometheus.ExponentialBuckets(10e-6, 2, 20)
	m := &metrics{
		registry: prometheus.NewRegistry(),
		moves: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "rehome_moves_total", Help: "Moves that this host was the source of, by outcome.",
		}, []string{"outcome"}),
		freeze: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "rehome_freeze_seconds", Help: "Time in which a moving connection was frozen.", Buckets: buckets,
		}),
		total: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "rehome_move_seconds", Help: "Time from the offer to the end of a move.", Buckets: buckets,
		}),
		held: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "rehome_held_packets_total", Help: "Packets that were held during moves and delivered afterwards.",
		}),
		taken: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "rehome_taken_total", Help: "Connections that this host has taken over.",
		}),
		rejected: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "rehome_rejected_agents_total", Help: "Connections to the agents' port that were refused.",
		}),
	}
	ended := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "rehome_ended_total", Help: "Connections that ended on this host, by whether their entry was told at once.",
	}, []string{"entry"})
	m.told, m.untold = ended.WithLabelValues("told"), ended.WithLabelValues("untold")
	m.forgotten = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "rehome_forgotten_flows_total", Help: "Flows that this entry has forgotten because their server said that they were over.",
	})
	m.registry.MustRegister(m.moves, m.freeze, m.total, m.held, m.taken, m.rejected, ended, m.forgotten)
	return m
}

// watchReporter has what a reporter counts, if there is one, among the metrics.
func (m *metrics) watchReporter(r reporter) {
	if r == nil {
		return
	}
	for _, c := range []struct {
		name, help string
		value      func(s report.Stats) float64
	}{
		{"rehome_heartbeats_total", "Heartbeats sent to dispatchers.", func(s report.Stats) float64 { return float64(s.Heartbeats) }},
		{"rehome_load_vectors_total", "Load vectors sent to dispatchers.", func(s report.Stats) float64 { return float64(s.Vectors) }},
		{"rehome_reports_failed_total", "Heartbeats and load vectors that could not be sent.", func(s report.Stats) float64 { return float64(s.Failed) }},
		{"rehome_heartbeats_skipped_total", "Heartbeats whose time had passed before they could be sent.", func(s report.Stats) float64 { return float64(s.Skipped) }},
	} {
		m.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: c.name, Help: c.help}, func() float64 { return c.value(r.Stats()) }))
	}
	m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "rehome_heartbeat_late_seconds", Help: "How late the latest heartbeat was.",
	}, func() float64 { return r.Stats().Late.Seconds() }))
}

func (m *metrics) moved(r Moved) {
	m.moves.WithLabelValues(r.Outcome).Inc()
	m.total.Observe(r.Total.Seconds())
	m.held.Add(float64(r.Held))
	if r.Freeze > 0 {
		m.freeze.Observe(r.Freeze.Seconds())
	}
}
