// SPDX-License-Identifier: Apache-2.0

package monitor

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/dispatcher/availability"
	"github.com/rehome-net/rehome/dispatcher/load"
	"github.com/rehome-net/rehome/handoff/vitals"
)

// Monitor is the receiver. Its methods are safe for concurrent use.
type Monitor struct {
	cfg    Config
	socket *socket
	wake   int // an eventfd: there are orders, or Run is to end

	mu     sync.Mutex
	closed bool
	orders []func()
	// stats are as of the last time that Run has published them.
	stats atomic.Pointer[Stats]

	// hosts is what everybody may read, replaced when something changes.
	hosts atomic.Pointer[map[uint32]Host]

	// Owned by Run.
	opener   *vitals.Opener
	detector *availability.Detector
	manager  *load.Manager
	count    Stats
	// heard is when the newest genuine datagram arrived, whoever sent it.
	heard time.Time
	// dirty means that hosts is not what the engines know, published when it last was.
	dirty     bool
	published time.Time
}

// Open binds the socket. What arrives before Run waits in it.
func Open(config Config) (*Monitor, error) {
	config = config.withDefaults()
	if err := config.validate(); err != nil {
		return nil, err
	}
	m := &Monitor{cfg: config, count: Stats{Refused: make(map[string]uint64)}}
	m.hosts.Store(&map[uint32]Host{})
	m.stats.Store(&Stats{})
	var err error
	if m.opener, err = vitals.NewOpener(vitals.OpenerConfig{Keys: config.Keys, Skew: config.Skew}); err != nil {
		return nil, fmt.Errorf("keys: %w", err)
	}
	if m.detector, err = availability.New(config.Availability); err != nil {
		return nil, fmt.Errorf("availability: %w", err)
	}
	if m.manager, err = load.NewManager(config.Load); err != nil {
		return nil, fmt.Errorf("load: %w", err)
	}
	if m.socket, err = listen(config.Listen, vitals.MaxSize); err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	if m.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return nil, errors.Join(os.NewSyscallError("eventfd", err), m.socket.close())
	}
	return m, nil
}

// Close gives the socket back. Call it after Run, or instead of it.
func (m *Monitor) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return net.ErrClosed
	}
	m.closed = true
	return errors.Join(m.socket.close(), unix.Close(m.wake))
}

// Addr is where the monitor listens.
func (m *Monitor) Addr() netip.AddrPort { return m.socket.addr }

// Host tells what is known of a host; ok is false when it is none of SetHosts', or Run has not got to it yet.
func (m *Monitor) Host(id uint32) (h Host, ok bool) {
	h, ok = (*m.hosts.Load())[id]
	return h, ok
}

// Hosts returns what is known of all hosts, in a map of the caller's own.
func (m *Monitor) Hosts() map[uint32]Host { return maps.Clone(*m.hosts.Load()) }

// Stats returns what has been counted.
func (m *Monitor) Stats() Stats {
	s := *m.stats.Load()
	s.Refused = maps.Clone(s.Refused)
	return s
}

// SetHosts says which hosts there are. Those that were known stay as they are, others are forgotten.
func (m *Monitor) SetHosts(ids []uint32) {
	want := make(map[uint32]bool, len(ids))
	for _, id := range ids {
		want[id] = true
	}
	m.order(func() { m.setHosts(want) })
}

// SetKeys replaces the keys, for instance when one is to be replaced by another.
func (m *Monitor) SetKeys(keys []vitals.Key) error {
	config := vitals.OpenerConfig{Keys: keys, Skew: m.cfg.Skew}
	if _, err := vitals.NewOpener(config); err != nil {
		return err
	}
	m.order(func() { _ = m.opener.SetConfig(config) }) // just looked at
	return nil
}

// order has Run do something.
func (m *Monitor) order(f func()) {
	m.mu.Lock()
	m.orders = append(m.orders, f)
	m.mu.Unlock()
	m.kick()
}

// kick ends Run's wait.
func (m *Monitor) kick() {
	var one [8]byte
	binary.NativeEndian.PutUint64(one[:], 1)
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.closed {
		_, _ = unix.Write(m.wake, one[:]) // full means that it is awake
	}
}
