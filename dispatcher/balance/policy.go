// SPDX-License-Identifier: Apache-2.0

package balance

import (
	"fmt"
	"math"
	"time"
)

// Policy chooses backends. It is safe for concurrent use.
type Policy interface {
	// Choose returns the place among candidates of the backend that gets a connection with that key (see Key), or -1 when
	// none can take it. Only ConsistentHash and Sticky look at the key.
	Choose(now time.Time, key uint64, candidates []Backend) int
}

// Backend is what a policy sees of a backend at the moment of a choice.
type Backend struct {
	// Name is unique in the pool and stays the same over restarts: consistent hashing goes by it.
	Name string
	// Weight is its share of connections relative to the others'; it gets none at 0 or below.
	Weight int
	// Active is the number of its connections now. Count a connection as soon as its backend is chosen, else all that come
	// until the next report go to the same one.
	Active int
	// Since is when it came into service, for the slow start; zero: long ago. The backends that are there when the
	// dispatcher starts are best left at zero.
	Since time.Time
	// SlowStart is how long its slow start takes; 0: as long as Config.SlowStart.
	SlowStart time.Duration
	// Drained means that an operator keeps new connections away from it.
	Drained bool
	// Down means that it is known not to answer.
	Down bool
	// Tried means that it has failed to take this very connection.
	Tried bool
	// Load is what the backend's load is taken to be, from 0 (idle) to 1 (all it can do) or more: the value of eq. 8. Only
	// Shell looks at it.
	Load float64
	// Report numbers the report that Load is from: another number, another report. 0: it has not reported, or not for so long
	// that Load means nothing.
	Report uint64
}

// takes reports whether the backend takes connections at all.
func (b *Backend) takes() bool { return !b.Drained && !b.Down && !b.Tried && b.Weight > 0 }

// Kind names a policy, as it stands in the configuration.
type Kind string

// Policies.
const (
	RoundRobin       Kind = "round-robin"
	LeastConnections Kind = "least-connections"
	ConsistentHash   Kind = "consistent-hash"
	PowerOfTwo       Kind = "power-of-two"
	Shell            Kind = "shell"
)

// Config says which policy a pool has. The zero Config is round robin without slow start.
type Config struct {
	// Kind is the policy; RoundRobin when empty.
	Kind Kind
	// SlowStart is how long it takes a backend to come to its full weight, in a straight line from nothing. 0: at once.
	SlowStart time.Duration
	// SessionLoad is what one session adds to the load of a backend, for Shell; 0: it is learned from loads and connections.
	SessionLoad float64
}

func (c Config) validate() error {
	if c.SlowStart < 0 {
		return fmt.Errorf("slow start: %v: want no less than 0", c.SlowStart)
	}
	if c.SessionLoad < 0 || math.IsNaN(c.SessionLoad) || math.IsInf(c.SessionLoad, 0) {
		return fmt.Errorf("session load: %v: want a share of a backend of no less than 0", c.SessionLoad)
	}
	return nil
}

// New returns the policy that config asks for, or an error that says which there are.
func New(config Config) (Policy, error) {
	if err := config.validate(); err != nil {
		return nil, err
	}
	ramp := ramp{config.SlowStart}
	switch config.Kind {
	case RoundRobin, "":
		return &roundRobin{turns: turns{ramp: ramp}}, nil
	case LeastConnections:
		return &leastConnections{turns: turns{ramp: ramp}}, nil
	case ConsistentHash:
		return &consistentHash{ramp: ramp}, nil
	case PowerOfTwo:
		return &powerOfTwo{ramp: ramp}, nil
	case Shell:
		return &shell{ramp: ramp, cost: config.SessionLoad}, nil
	}
	return nil, fmt.Errorf("policy %q: want %s, %s, %s, %s or %s", config.Kind, RoundRobin, LeastConnections, ConsistentHash, PowerOfTwo, Shell)
}
