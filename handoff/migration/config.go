// SPDX-License-Identifier: Apache-2.0

package migration

import (
	"errors"
	"time"
)

// Config holds the times of a migration. Its zero value works.
type Config struct {
	// Limit is how long one move may take from offer to commit, and how long the entry's lease lasts; 10 s when
	// zero. The source's gate holds a frozen flow for HoldTTL, which is longer.
	Limit time.Duration
	// Grace is how long a source that must know the entry's answer goes on asking after Limit; 3 s when zero.
	Grace time.Duration
	// Orphan is how long a target that must know it goes on asking after Limit; 5 min when zero. It may be longer than
	// Grace because nobody waits for this target unless it is the owner, and then nobody else can go on. The entry may
	// have said yes and told the source so: a target that gave up then would leave the client without anybody.
	Orphan time.Duration
	// Retry is the time between two questions to an entry that does not answer; 200 ms when zero.
	Retry time.Duration
	// HeldWait is how long a target that has committed waits for the packets that the source held; 500 ms when zero.
	HeldWait time.Duration
}

const (
	// clockMargin covers what stands between the gate's clock and the entry's besides their rates.
	clockMargin = time.Second
	// clockRate is the inverse of the difference in rate that is allowed for: each of the two clocks is within 1 % of true.
	clockRate = 50
)

// WithDefaults returns the configuration with its zero values filled in.
func (c Config) WithDefaults() Config {
	set := func(p *time.Duration, v time.Duration) {
		if *p <= 0 {
			*p = v
		}
	}
	set(&c.Limit, 10*time.Second)
	set(&c.Grace, 3*time.Second)
	set(&c.Orphan, 5*time.Minute)
	set(&c.Retry, 200*time.Millisecond)
	set(&c.HeldWait, 500*time.Millisecond)
	return c
}

// HoldTTL is how long the gate must keep a flow held, counted from the freeze, so that no lease of this configuration
// outlives it: the freeze comes after the lease was granted, which was when its time began to run.
func (c Config) HoldTTL() time.Duration {
	c = c.WithDefaults()
	return c.Limit + c.Limit/clockRate + c.Grace + clockMargin
}

// Reasons that the machines give. Refusals and failures carry the errors of the events that told of them.
var (
	// ErrTimeout means that the move was not over within Config.Limit.
	ErrTimeout = errors.New("not finished in time")
	// ErrNoReason stands for the error of an event that should have told why and did not.
	ErrNoReason = errors.New("no reason given")
	// ErrPeerLost means that the connection to the other agent broke.
	ErrPeerLost = errors.New("lost the connection to the other agent")
	// ErrEntryLost means that the connection to the flow's entry broke before it was needed.
	ErrEntryLost = errors.New("lost the connection to the entry")
	// ErrApplicationLost means that the application went away.
	ErrApplicationLost = errors.New("lost the application")
	// ErrOwner means that the entry gave the flow to somebody else.
	ErrOwner = errors.New("the entry names another owner")
	// ErrUnresolved means that the entry could not be asked until the deadline: the connection was ended.
	ErrUnresolved = errors.New("could not learn from the entry who owns the flow: the connection was ended")
)
