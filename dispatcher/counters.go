// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/rehome-net/rehome/handoff/wire"
)

// counters are what the dispatcher tells Prometheus.
type counters struct {
	registry *prometheus.Registry

	accepted prometheus.Counter
	crowded  prometheus.Counter
	left     prometheus.Counter
	slow     prometheus.Counter
	rejected *prometheus.CounterVec
	unrouted *prometheus.CounterVec
	handoffs *prometheus.CounterVec
	failures *prometheus.CounterVec
	latency  *prometheus.HistogramVec
	relayed  prometheus.Counter

	shed, unshed           prometheus.Counter
	evacuated              prometheus.Counter
	sessions, unplaced     prometheus.Counter
	announced, unannounced prometheus.Counter
	followed, held, unheld prometheus.Counter
	strangers, misfits     prometheus.Counter
	findings               *prometheus.CounterVec
	decisions              *prometheus.CounterVec
}

func newCounters() *counters {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "rehome_dispatcher_" + name, Help: help})
	}
	vector := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "rehome_dispatcher_" + name, Help: help}, labels)
	}
	c := &counters{
		registry: prometheus.NewRegistry(),
		accepted: counter("accepted_total", "Connections accepted."),
		crowded:  counter("crowded_total", "Connections refused because too many wait for their first request."),
		left:     counter("left_total", "Clients that went away before their first request was complete."),
		slow:     counter("slow_total", "Connections closed because their first request took too long."),
		rejected: vector("rejected_total", "Connections whose first bytes are not the service's protocol, by reason.", "reason"),
		unrouted: vector("refused_total", "Connections that were refused after their first request was read, by reason.", "reason"),
		handoffs: vector("handoffs_total", "Connections that a backend has taken, by delivery.", "delivery"),
		failures: vector("handoff_failures_total", "Attempts to hand off that failed, by result.", "result"),
		relayed:  counter("relayed_bytes_total", "Bytes that this host itself had sent to the clients of connections when it handed them off."),
		latency: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "rehome_dispatcher_handoff_seconds", Help: "Time from accepting a connection to its being the backend's, by delivery.",
			Buckets: prometheus.ExponentialBuckets(20e-6, 1.3, 46), // to about 2.6 s
		}, []string{"delivery"}),
	}
	c.shed = counter("shed_total", "Connections that were ordered away from servers that are too loaded.")
	c.evacuated = counter("evacuated_total", "Connections that were ordered away from servers that have announced their failure.")
	c.unshed = counter("shed_refused_total", "Of both: connections that did not move.")
	c.registry.MustRegister(c.shed, c.evacuated, c.unshed)
	c.sessions = counter("sessions_total", "Sessions opened.")
	c.unplaced = counter("sessions_refused_total", "First packets of sessions that no server took, or the session table.")
	c.announced = counter("announced_flows_total", "Flows that signalling has announced and that were installed.")
	c.unannounced = counter("announced_flows_refused_total", "Flows that signalling has announced and that could not be installed.")
	c.followed = counter("sessions_moved_total", "Sessions whose signalling connection has moved to another server, and their media with it.")
	c.held = counter("media_held_total", "Datagrams that waited here while their session moved.")
	c.unheld = counter("media_dropped_total", "Datagrams that were dropped because too many waited.")
	c.registry.MustRegister(c.followed, c.held, c.unheld)
	c.strangers = counter("rejected_peers_total", "Connections to the agents' port that were neither a configured peer's nor a gateway's.")
	c.misfits = counter("agent_messages_refused_total", "Messages of agents that no agent sends a dispatcher; each ends its connection.")
	c.registry.MustRegister(c.strangers, c.misfits)
	c.findings = vector("signalling_findings_total", "Oddities in signalling, by reason.", "reason")
	c.decisions = vector("admission_decisions_total", "Decisions of admission, by what they amount to: accepting, thinning, closed, degrading, full.", "state")
	c.registry.MustRegister(c.decisions)
	c.registry.MustRegister(c.sessions, c.unplaced, c.announced, c.unannounced, c.findings)
	c.registry.MustRegister(c.relayed, c.accepted, c.crowded, c.left, c.slow, c.rejected, c.unrouted, c.handoffs, c.failures, c.latency)
	return c
}

func (c *counters) handedOff(d wire.Delivery, took time.Duration) {
	c.handoffs.WithLabelValues(d.String()).Inc()
	c.latency.WithLabelValues(d.String()).Observe(took.Seconds())
}

// failed counts an attempt that did not succeed: the backend refused, the connection was lost, or nobody was left to take it.
func (c *counters) failed(result string) { c.failures.WithLabelValues(result).Inc() }
