// SPDX-License-Identifier: Apache-2.0

package gateway

import "github.com/prometheus/client_golang/prometheus"

// Stats counts what a gateway did since it was opened.
type Stats struct {
	// Diverted packets came to user space, Released ones went on their way again.
	Diverted, Released uint64
	// Late packets were released because their time was over, with a report not confirmed; Behind ones, with bytes before them missing.
	Late, Behind uint64
	// Unread packets were diverted and are of no flow that is read.
	Unread uint64
	// Overflow counts packets beyond a bound of Limits.
	Overflow uint64
	// Reports went to the dispatcher, with so many Halves.
	Reports, Halves uint64
	// Confirmed reports are installed; Rejected ones the dispatcher did not want; Expired and Dropped ones were given up, as too old and too many.
	Confirmed, Rejected, Expired, Dropped uint64
	// Refused packets used a service's address and came from a host that is no server of it: they were dropped. Unverified ones passed, while
	// not all servers' link-layer addresses were known.
	Refused, Unverified uint64
	// Lapsed packets passed because the process was not there to read them; Exempt ones because nothing more can be read of their flow; Fragments
	// because fragments are not put together.
	Lapsed, Exempt, Fragments uint64
	// Failed streams are read no more: reassembly could not cope with them.
	Failed uint64
	// Lost packets could not be written back.
	Lost uint64
	// Unknown is the number of hosts, the dispatcher and the servers, whose link-layer address is not known.
	Unknown int
	// Connected says that the dispatcher is there; Connections is how often it was reached.
	Connected   bool
	Connections uint64
}

// collector tells Prometheus.
type collector struct {
	stats func() Stats
	names []counterName

	up, unknown *prometheus.Desc
}

type counterName struct {
	desc  *prometheus.Desc
	value func(Stats) uint64
}

func newCollector(stats func() Stats) *collector {
	c := &collector{
		stats:   stats,
		up:      prometheus.NewDesc("rehome_gateway_dispatcher_up", "Whether the dispatcher is connected.", nil, nil),
		unknown: prometheus.NewDesc("rehome_gateway_unknown_hosts", "Hosts whose link-layer address is not known: nothing of theirs is read.", nil, nil),
	}
	add := func(name, help string, value func(Stats) uint64) {
		c.names = append(c.names, counterName{prometheus.NewDesc("rehome_gateway_"+name+"_total", help, nil, nil), value})
	}
	add("diverted_packets", "Signalling packets that were led through user space.", func(s Stats) uint64 { return s.Diverted })
	add("late_packets", "Packets that were released before their report was confirmed.", func(s Stats) uint64 { return s.Late })
	add("behind_packets", "Packets that were released while bytes before them were missing.", func(s Stats) uint64 { return s.Behind })
	add("overflow_packets", "Packets beyond a limit, released at once.", func(s Stats) uint64 { return s.Overflow })
	add("unread_packets", "Diverted packets of no flow that is read.", func(s Stats) uint64 { return s.Unread })
	add("reports", "Reports for the dispatcher.", func(s Stats) uint64 { return s.Reports })
	add("confirmed_reports", "Reports that the dispatcher has confirmed.", func(s Stats) uint64 { return s.Confirmed })
	add("rejected_reports", "Reports that the dispatcher did not want.", func(s Stats) uint64 { return s.Rejected })
	add("lost_reports", "Reports that were given up.", func(s Stats) uint64 { return s.Expired + s.Dropped })
	add("refused_packets", "Packets from hosts that are no servers of the service whose address they used.", func(s Stats) uint64 { return s.Refused })
	add("unverified_packets", "Packets that passed while not all servers were known.", func(s Stats) uint64 { return s.Unverified })
	add("lapsed_packets", "Packets that passed because nobody read.", func(s Stats) uint64 { return s.Lapsed })
	add("fragments", "IP fragments of signalling, which pass unread.", func(s Stats) uint64 { return s.Fragments })
	add("failed_streams", "Streams that could not be put together.", func(s Stats) uint64 { return s.Failed })
	add("lost_packets", "Packets that could not be written back.", func(s Stats) uint64 { return s.Lost })
	add("connections", "Connections to the dispatcher.", func(s Stats) uint64 { return s.Connections })
	return c
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	ch <- c.up
	ch <- c.unknown
	for _, n := range c.names {
		ch <- n.desc
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	s := c.stats()
	up := 0.0
	if s.Connected {
		up = 1
	}
	ch <- prometheus.MustNewConstMetric(c.up, prometheus.GaugeValue, up)
	ch <- prometheus.MustNewConstMetric(c.unknown, prometheus.GaugeValue, float64(s.Unknown))
	for _, n := range c.names {
		ch <- prometheus.MustNewConstMetric(n.desc, prometheus.CounterValue, float64(n.value(s)))
	}
}
