// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/rehome-net/rehome/dispatcher/balance"
)

// Delivery is how a connection reaches a pool's servers.
type Delivery string

// Deliveries.
const (
	// DeliveryLinked is for servers that link package handoff: the host's agent passes the connection to them.
	DeliveryLinked Delivery = "linked"
	// DeliveryFD is for servers that take descriptors of connections from a UNIX socket.
	DeliveryFD Delivery = "fd"
	// DeliveryUnmodified is for servers that nobody changed: the connection appears at their listening socket.
	DeliveryUnmodified Delivery = "unmodified"
)

// HashSource is what consistent hashing goes by.
type HashSource string

// Sources of a hash.
const (
	HashClient HashSource = "client" // the client's address, without port
	HashHost   HashSource = "host"   // the request's host; in mode tls the server name
	HashPath   HashSource = "path"   // the request's path
	HashHeader HashSource = "header" // a header's value; it needs a name
	HashCookie HashSource = "cookie" // a cookie's value; it needs a name
)

// PoolConfig is a group of backends that serve the same.
type PoolConfig struct {
	Name string `yaml:"name"`
	// Delivery is how connections reach its servers.
	Delivery Delivery `yaml:"delivery"`
	// Service is the name under which its applications have registered at the agents; the pool's name when empty.
	Service string `yaml:"service"`
	// Balance chooses among the backends; round-robin when empty.
	Balance balance.Kind `yaml:"balance"`
	// Hash is what consistent-hash goes by: client, host, path, header NAME or cookie NAME; client when empty. A request
	// without that header or cookie counts by its client.
	Hash string `yaml:"hash"`
	// Sticky says which connections go where one before them went, of services in the modes http, h2, tls and tcp: none (when empty), client (by
	// address), cookie NAME (by its value) or session NAME (by the value of that cookie, path parameter or query parameter). A
	// backend that is drained or down, or that refuses the connection, loses those who stuck to it to others, for good.
	Sticky string `yaml:"sticky,omitempty"`
	// StickyTime is how long it is remembered at least who went where, after its last connection (30 min), and StickyKeys of how many (131,072).
	StickyTime time.Duration `yaml:"sticky_time,omitempty"`
	StickyKeys int           `yaml:"sticky_keys,omitempty"`
	// SlowStart is how long a backend that comes back takes to its full weight. 0: it has it at once.
	SlowStart time.Duration `yaml:"slow_start"`
	// HandoffTime is how long one attempt to hand off may take (1 s), before the next backend is tried.
	HandoffTime time.Duration `yaml:"handoff_time"`
	// Health is how its servers are asked whether they serve; nil: they are not.
	Health *HealthConfig `yaml:"health,omitempty"`
	// Backends are the hosts that serve it.
	Backends []BackendConfig `yaml:"backends"`
}

// BackendConfig is a host that serves a pool.
type BackendConfig struct {
	// Host is the peer's name.
	Host string `yaml:"host"`
	// Weight is its share of connections relative to others' (0-1000); 1 when left out. With 0 it gets none.
	Weight *int `yaml:"weight"`
	// Socket is the path, on that host, of the UNIX socket that takes descriptors; for the delivery fd.
	Socket string `yaml:"socket,omitempty"`
	// Cookie is the value by which a server has clients come back: the sticky cookie's whole value, or what stands behind its last dot
	// (a servlet container's route). The backend's name when empty.
	Cookie string `yaml:"cookie,omitempty"`
}

// What a pool's values may be.
const (
	maxWeight      = 1000
	maxSlowStart   = 24 * time.Hour
	minHandoffTime = time.Millisecond
	maxHandoffTime = time.Minute
	maxSocketPath  = 107 // what fits into sockaddr_un with its final zero
)

func (p *PoolConfig) setDefaults() {
	defaultTo(&p.Service, p.Name)
	defaultTo(&p.Balance, balance.RoundRobin)
	if p.Balance == balance.ConsistentHash {
		defaultTo(&p.Hash, string(HashClient))
	}
	defaultTo(&p.HandoffTime, time.Second)
	if p.Health != nil {
		p.Health.setDefaults()
	}
	for i := range p.Backends {
		if b := &p.Backends[i]; b.Weight == nil {
			b.Weight = new(1)
		}
	}
}

// HashBy returns what consistent hashing goes by, with the header's or cookie's name; empty with other policies.
func (p *PoolConfig) HashBy() (source HashSource, name string) {
	word, name, _ := strings.Cut(p.Hash, " ")
	return HashSource(word), strings.TrimSpace(name)
}

// Name returns what the backend is called within its pool: its host, and the socket if it has one.
func (b BackendConfig) Name() string {
	if b.Socket == "" {
		return b.Host
	}
	return b.Host + ":" + b.Socket
}

func (c *Config) validatePools() error {
	var errs []error
	peers := make(map[string]bool, len(c.Peers))
	for _, p := range c.Peers {
		peers[p.Name] = true
	}
	names := map[string]bool{}
	for i := range c.Pools {
		p := &c.Pools[i]
		bad := func(err error) { errs = append(errs, fmt.Errorf("pools[%d] %s: %w", i, p.Name, err)) }
		for _, err := range p.validate() {
			bad(err)
		}
		if names[p.Name] {
			bad(fmt.Errorf("name: %q stands twice", p.Name))
		}
		names[p.Name] = true
		backends := map[string]bool{}
		for j, b := range p.Backends {
			if err := b.validate(p.Delivery); err != nil {
				bad(fmt.Errorf("backends[%d]: %w", j, err))
			}
			switch {
			case b.Host == "":
			case b.Host == c.Host:
				bad(fmt.Errorf("backends[%d]: host: %q is this host: connections are handed to others only", j, b.Host))
			case !peers[b.Host]:
				bad(fmt.Errorf("backends[%d]: host: %q is not among the peers", j, b.Host))
			}
			if backends[b.Name()] {
				bad(fmt.Errorf("backends[%d]: %s stands twice: give it a greater weight instead", j, b.Name()))
			}
			backends[b.Name()] = true
		}
	}
	return errors.Join(append(errs, c.validateChecks())...)
}

// validate returns what is wrong with the pool, without its backends.
func (p *PoolConfig) validate() []error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if p.Name == "" {
		bad("name: missing")
	}
	switch p.Delivery {
	case DeliveryLinked, DeliveryFD, DeliveryUnmodified:
	case "":
		bad("delivery: missing: want %s, %s or %s", DeliveryLinked, DeliveryFD, DeliveryUnmodified)
	default:
		bad("delivery: %q: want %s, %s or %s", p.Delivery, DeliveryLinked, DeliveryFD, DeliveryUnmodified)
	}
	if _, err := balance.New(balance.Config{Kind: p.Balance}); err != nil {
		bad("balance: %w", err)
	}
	if err := p.validateHash(); err != nil {
		bad("hash: %w", err)
	}
	errs = append(errs, p.validateSticky()...)
	if p.SlowStart < 0 || p.SlowStart > maxSlowStart {
		bad("slow_start: %v: want 0 to %v", p.SlowStart, maxSlowStart)
	}
	if p.HandoffTime < minHandoffTime || p.HandoffTime > maxHandoffTime {
		bad("handoff_time: %v: want %v to %v", p.HandoffTime, minHandoffTime, maxHandoffTime)
	}
	if len(p.Backends) == 0 {
		bad("backends: missing: name the hosts that serve the pool")
	}
	return errs
}

func (p *PoolConfig) validateHash() error {
	if p.Hash == "" {
		return nil
	}
	if p.Balance != balance.ConsistentHash {
		return fmt.Errorf("only with balance: %s", balance.ConsistentHash)
	}
	switch source, name := p.HashBy(); source {
	case HashClient, HashHost, HashPath:
		if name != "" {
			return fmt.Errorf("%q: nothing follows %s", p.Hash, source)
		}
	case HashHeader, HashCookie:
		if name == "" || strings.ContainsAny(name, " \t:;,=") {
			return fmt.Errorf("%q: want one name after %s", p.Hash, source)
		}
	default:
		return fmt.Errorf("%q: want %s, %s, %s, %s NAME or %s NAME", p.Hash, HashClient, HashHost, HashPath, HashHeader, HashCookie)
	}
	return nil
}

func (b BackendConfig) validate(delivery Delivery) error {
	if b.Host == "" {
		return errors.New("host: missing: name the peer that serves the pool")
	}
	if w := *b.Weight; w < 0 || w > maxWeight {
		return fmt.Errorf("weight: %d: want 0 to %d", w, maxWeight)
	}
	switch {
	case delivery == DeliveryFD && b.Socket == "":
		return errors.New("socket: missing: delivery fd needs the path of the UNIX socket that takes descriptors")
	case delivery != DeliveryFD && b.Socket != "":
		return fmt.Errorf("socket: only with delivery %s", DeliveryFD)
	case b.Socket != "" && (!strings.HasPrefix(b.Socket, "/") || len(b.Socket) > maxSocketPath):
		return fmt.Errorf("socket: %q: want a path from the root, of at most %d bytes", b.Socket, maxSocketPath)
	}
	return nil
}
