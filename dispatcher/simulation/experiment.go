// SPDX-License-Identifier: Apache-2.0

package simulation

import (
	"time"

	"github.com/rehome-net/rehome/dispatcher/admission"
	"github.com/rehome-net/rehome/dispatcher/balance"
)

// Contender is a way to admit and to balance.
type Contender struct {
	Name      string
	Admission admission.Config
	Balance   balance.Kind
}

// Contenders are compared under overload. All that go by loads have the same thresholds, and the faster or better one of two intervals
// between decisions where that matters; so does the bound on connections. Servers are chosen by least connections
// except where the name says otherwise.
func Contenders() []Contender {
	fast := 100 * time.Millisecond // as often as loads are reported; SA2C comes down to it by eq. 3
	return []Contender{
		{Name: "none", Admission: admission.Config{Kind: admission.None}},
		{Name: "leastconn503, 20", Admission: admission.Config{Kind: admission.LeastConnections503, Connections: 20}},
		{Name: "leastconn503, 200", Admission: admission.Config{Kind: admission.LeastConnections503, Connections: 200}},
		{Name: "request, 1 s", Admission: admission.Config{Kind: admission.Request}},
		{Name: "request, 100 ms", Admission: admission.Config{Kind: admission.Request, Interval: fast}},
		{Name: "static", Admission: admission.Config{Kind: admission.Static, Interval: fast}},
		{Name: "sa2c", Admission: admission.Config{}},
		{Name: "sa2c literal", Admission: admission.Config{Reading: admission.Literal}},
		{Name: "sa2c, fixed", Admission: admission.Config{FixedThresholds: true}},
		{Name: "sa2c literal, fixed", Admission: admission.Config{Reading: admission.Literal, FixedThresholds: true}},
		{Name: "sa2c, shell", Admission: admission.Config{}, Balance: balance.Shell},
	}
}

// Variation is a world to compare them in.
type Variation struct {
	Name   string
	Config Config
}

// Variations are what the outcome might depend on. The first is the base, of which each of the others changes one thing.
func Variations() []Variation {
	return []Variation{
		{"base: twice the load", Config{}},
		{"0.9 times the load", Config{Offered: 0.9}},
		{"1.2 times the load", Config{Offered: 1.2}},
		{"4 times the load", Config{Offered: 4}},
		{"session lengths without memory", Config{Memoryless: true}},
		{"60 requests to a session", Config{Requests: 60}},
		{"10 s to think", Config{ThinkTime: 10 * time.Second, WarmUp: 4 * time.Minute}},
		{"patience of 1 s", Config{Patience: time.Second}},
		{"servers notice who has gone", Config{Notices: true}},
		{"the refused try three times more", Config{NewRetries: 3}},
		{"loads reported each second", Config{Report: time.Second}},
		{"two servers", Config{Servers: 2}},
		{"bursts of 3.5 for 20 s, 0.5 for 40 s", Config{Changes: bursts()}},
		{"servers at half speed, 30 s in 2 minutes", Config{Changes: slumps(0.5)}},
		{"servers at 1/8 speed, 30 s in 2 minutes", Config{Changes: slumps(0.125)}},
		{"a connection for each session", Config{KeptConnections: true}},
		{"load: largest of 0.8 busy, backlog", Config{LargestPart: 0.8}},
		{"load: largest of busy, backlog", Config{LargestPart: 1}},
		{"loads not forecast", Config{Unforecast: true}},
	}
}

// horizon is longer than any of these runs.
const horizon = 4 * time.Hour

func bursts() []Change {
	var changes []Change
	for at := time.Duration(0); at < horizon; at += time.Minute {
		changes = append(changes, Change{At: at, Offered: 3.5}, Change{At: at + 20*time.Second, Offered: 0.5})
	}
	return changes
}

// slumps slow down all eight servers of the base.
func slumps(speed float64) []Change {
	var changes []Change
	for at := 90 * time.Second; at < horizon; at += 2 * time.Minute {
		for i := range 8 {
			changes = append(changes, Change{At: at, Server: i, Speed: speed})
		}
		for i := range 8 {
			changes = append(changes, Change{At: at + 30*time.Second, Server: i, Speed: 1})
		}
	}
	return changes
}

// Compete runs a contender in a world, once for each seed, with so many sessions each, and returns the sum.
func Compete(c Contender, v Variation, sessions int, seeds ...uint64) (Result, error) {
	var sum Result
	for _, seed := range seeds {
		config := v.Config
		config.Seed, config.Sessions, config.Admission, config.Balance = seed, sessions, c.Admission, c.Balance
		r, err := Run(config)
		if err != nil {
			return Result{}, err
		}
		sum = sum.plus(r)
	}
	return sum, nil
}
