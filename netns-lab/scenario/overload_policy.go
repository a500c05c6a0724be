// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"fmt"
	"math"
	"time"

	"github.com/rehome-net/rehome/dispatcher"
	"github.com/rehome-net/rehome/dispatcher/admission"
	"github.com/rehome-net/rehome/dispatcher/balance"
)

// OverloadPolicy names what decides who is let in.
type OverloadPolicy string

// Policies of the scene. Those of which nothing is said are the dispatcher's of the same name.
const (
	OverloadNone      OverloadPolicy = OverloadPolicy(admission.None)
	OverloadStatic    OverloadPolicy = OverloadPolicy(admission.Static)
	OverloadLeastConn OverloadPolicy = OverloadPolicy(admission.LeastConnections503)
	// OverloadRequest knows requests and no sessions: each is a connection of its own, and may be refused.
	OverloadRequest OverloadPolicy = OverloadPolicy(admission.Request)
	OverloadSA2C    OverloadPolicy = OverloadPolicy(admission.SA2C)
	// OverloadSilent is sa2c whose refusals nobody is told of: the kernel drops the SYN.
	OverloadSilent OverloadPolicy = "sa2c-syn"
	// OverloadDatagram is sa2c in front of a service of datagrams: dnsmasq, which asks a server that is slow. The kernel drops a session's first datagram.
	OverloadDatagram OverloadPolicy = "udp"
	// OverloadDatagramNone is the same service without admission control.
	OverloadDatagramNone OverloadPolicy = "udp-none"
	// OverloadBare is a dispatcher without admission control and without reports.
	OverloadBare OverloadPolicy = "bare"
	// OverloadDirect is no dispatcher: clients go to the servers in turn.
	OverloadDirect OverloadPolicy = "direct"
)

// OverloadPolicies are those that the scene compares.
func OverloadPolicies() []OverloadPolicy {
	return []OverloadPolicy{
		OverloadNone, OverloadStatic, OverloadLeastConn, OverloadRequest, OverloadSA2C, OverloadSilent,
		OverloadDatagramNone, OverloadDatagram,
	}
}

// datagrams reports whether the policy is of the service of datagrams.
func (p OverloadPolicy) datagrams() bool { return p == OverloadDatagram || p == OverloadDatagramNone }

// Times of admission's decisions, in a scene that lasts some seconds.
const (
	decisionInterval = 200 * time.Millisecond
	decisionFloor    = 100 * time.Millisecond
)

// forecastWindow is how many reports forecasts are made of.
const forecastWindow = 8

// setup is what a policy makes of the dispatcher.
type setup struct {
	direct    bool
	datagrams bool
	each      bool // as patient has it
	silent    bool
	balance   balance.Kind
	reports   bool
	admission dispatcher.AdmissionConfig
	forecast  dispatcher.ForecastConfig
}

func (p OverloadPolicy) setup(c OverloadConfig) (setup, error) {
	s := setup{
		datagrams: p.datagrams(), balance: balance.Shell, reports: true, forecast: dispatcher.ForecastConfig{Window: forecastWindow},
		admission: dispatcher.AdmissionConfig{
			Policy: admission.Kind(p), Interval: decisionInterval, Floor: decisionFloor, RetryAfter: time.Second,
			T1: c.Thresholds[0], T2: c.Thresholds[1], T3: c.Thresholds[2], C: c.Thresholds[3],
		},
	}
	switch p {
	case OverloadDirect:
		return setup{direct: true}, nil
	case OverloadBare:
		return setup{balance: balance.LeastConnections}, nil
	case OverloadLeastConn:
		s.balance = balance.LeastConnections
		s.admission.Connections = c.Connections
	case OverloadRequest:
		s.each = true
	case OverloadSilent:
		s.silent = true
		s.admission.Policy, s.admission.RetryAfter = admission.SA2C, 0
	case OverloadDatagram:
		s.admission.Policy, s.admission.RetryAfter = admission.SA2C, 0
	case OverloadDatagramNone:
		s.admission.Policy, s.admission.RetryAfter = admission.None, 0
	case OverloadNone, OverloadStatic, OverloadSA2C:
	default:
		return setup{}, fmt.Errorf("overload: policy %q: there is none of that name", p)
	}
	return s, nil
}

// boundFactor is by how much the bound with which most sessions were completed was larger than what keeps a server busy. The dispatcher hears of a connection's
// end a second later, and counts it until then; with three times as many it comes to collapse as without any bound.
const boundFactor = 2

// bestBound is the best one for leastconn503 that was found. It goes by how many sessions keep one server just busy, each of whose workers serves as many as can
// take turns in the time of a request and the pause after it. An operator would have to know as much.
func (c OverloadConfig) bestBound() int {
	turns := 1 + float64(c.Think)/float64(c.ServiceTime)
	return int(math.Ceil(boundFactor * float64(c.Workers) * turns))
}
