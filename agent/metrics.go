// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"github.com/prometheus/client_golang/prometheus"
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

func (m *metrics) moved(r Moved) {
	m.moves.WithLabelValues(r.Outcome).Inc()
	m.total.Observe(r.Total.Seconds())
	m.held.Add(float64(r.Held))
	if r.Freeze > 0 {
		m.freeze.Observe(r.Freeze.Seconds())
	}
}
