// SPDX-License-Identifier: Apache-2.0

package report

import (
	"encoding/binary"
	"errors"
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
	Teller

	cfg               Config
	heartbeats, loads *sender

	state atomic.Pointer[state]

	waking sync.Mutex // of who changes state, and of wake
	wake   int        // an eventfd: the state has changed, or Run is to end
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
	r.tell = r.setWord
	r.state.Store(&state{})
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
	r.waking.Lock()
	defer r.waking.Unlock()
	if r.closed {
		return net.ErrClosed
	}
	r.closed = true
	return errors.Join(unix.Close(r.wake), r.heartbeats.close(), r.loads.close())
}

// setWord has others' word passed on, at once if heartbeats change with it.
func (r *Reporter) setWord(w word) {
	r.waking.Lock()
	defer r.waking.Unlock()
	last := r.state.Load()
	r.state.Store(&state{word: w, deserted: last.deserted})
	if last.news(&w) {
		r.kick()
	}
}

// setDeserted does the same with what was seen here.
func (r *Reporter) setDeserted(deserted bool) {
	r.waking.Lock()
	defer r.waking.Unlock()
	last := r.state.Load()
	if last.deserted != deserted {
		r.state.Store(&state{word: last.word, deserted: deserted})
		r.kick()
	}
}

// kick wakes the thread that sends heartbeats. The caller holds waking.
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
