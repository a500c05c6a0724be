// SPDX-License-Identifier: Apache-2.0

package report

import (
	"encoding/binary"
	"errors"
	"math"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Reporter tells dispatchers of this host. Its methods are safe for concurrent use, before and during Run.
type Reporter struct {
	cfg               Config
	heartbeats, loads *sender

	mu     sync.Mutex // of who changes state, and of wake
	state  atomic.Pointer[state]
	wake   int // an eventfd: the state has changed, or Run is to end
	closed bool

	skipped atomic.Uint64
	late    atomic.Int64
}

// New returns a reporter, or an error that says what is wrong with the configuration. It needs Close, or Run.
func New(config Config) (*Reporter, error) {
	config = config.withDefaults()
	if err := config.validate(); err != nil {
		return nil, err
	}
	r := &Reporter{cfg: config}
	r.state.Store(&state{down: map[string]bool{}, loads: map[string]float64{}})
	var err error
	if r.heartbeats, err = newSender(config.Key, config.Dispatchers); err != nil {
		return nil, err
	}
	if r.loads, err = newSender(config.Key, config.Dispatchers); err != nil {
		return nil, errors.Join(err, r.heartbeats.close())
	}
	if r.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return nil, errors.Join(os.NewSyscallError("eventfd", err), r.heartbeats.close(), r.loads.close())
	}
	return r, nil
}

// Close gives back what New has opened. Run does so at its end; call it when Run is not.
func (r *Reporter) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return net.ErrClosed
	}
	r.closed = true
	return errors.Join(unix.Close(r.wake), r.heartbeats.close(), r.loads.close())
}

// SetDown says that something that sessions need is down, or up again. Heartbeats say that the application is down as long as anything is.
// The name is the caller's.
func (r *Reporter) SetDown(name string, down bool) {
	r.change(func(s *state) bool {
		if s.down[name] == down {
			return false
		}
		delete(s.down, name)
		if down {
			s.down[name] = true
		}
		return true
	})
}

// SetLoad says how loaded an application finds itself, 0 to 1; NaN that it does not say so any more. Dispatchers hear of the highest, with
// the next load vector.
func (r *Reporter) SetLoad(name string, load float64) {
	r.change(func(s *state) bool {
		s.loads[name] = load
		if math.IsNaN(load) {
			delete(s.loads, name)
		}
		return false
	})
}

// SetSessions says how many connections this host serves.
func (r *Reporter) SetSessions(n uint32) {
	r.change(func(s *state) bool {
		s.sessions = n
		return false
	})
}

// Announce says that this host will fail at a time: dispatchers give it no new sessions from now on, and none at all from then on
// (SARA 27). It holds until Retract.
func (r *Reporter) Announce(at time.Time) {
	r.change(func(s *state) bool {
		same := s.failure.Equal(at)
		s.failure = at
		return !same
	})
}

// Retract takes Announce back.
func (r *Reporter) Retract() { r.Announce(time.Time{}) }

// change replaces the state. f changes a copy and reports whether dispatchers must know at once.
func (r *Reporter) change(f func(s *state) (urgent bool)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	next := r.state.Load().clone()
	urgent := f(next)
	r.state.Store(next)
	if urgent {
		r.kick()
	}
}

// kick wakes the thread that sends heartbeats. The caller holds mu.
func (r *Reporter) kick() {
	var one [8]byte
	binary.NativeEndian.PutUint64(one[:], 1)
	if !r.closed {
		_, _ = unix.Write(r.wake, one[:]) // full means that it is awake
	}
}

// Stats returns what has been counted.
func (r *Reporter) Stats() Stats {
	return Stats{
		Heartbeats: r.heartbeats.sent.Load(), Vectors: r.loads.sent.Load(), Failed: r.heartbeats.failed.Load() + r.loads.failed.Load(),
		Skipped: r.skipped.Load(), Late: time.Duration(r.late.Load()),
	}
}

// firstSeq is where a sender begins to count: anywhere, so that a receiver sees that it has started again.
func firstSeq() uint16 { return uint16(rand.Uint32()) }
