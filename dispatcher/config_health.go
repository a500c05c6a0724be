// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/rehome-net/rehome/dispatcher/health"
)

// ChecksConfig is the way that active checks take to a backend for the virtual address (health.Path). Without Addresses there is none, and checks
// go to the backends' own addresses.
type ChecksConfig struct {
	// Interface is the Ethernet interface that backends are reached by; the first of the dispatcher's when empty.
	Interface string `yaml:"interface,omitempty"`
	// Addresses are for the checks alone: one of the backends' network for each IP version, with the prefix length, that nobody has.
	Addresses []netip.Prefix `yaml:"addresses,omitempty"`
}

func (c ChecksConfig) path() health.PathConfig {
	return health.PathConfig{Interface: c.Interface, Addresses: c.Addresses}
}

// reaches reports whether the path leads to backends with addresses such as a.
func (c ChecksConfig) reaches(a netip.Addr) bool {
	return slices.ContainsFunc(c.Addresses, func(p netip.Prefix) bool { return p.Addr().Is4() == a.Is4() })
}

// Through is what a check is addressed to.
type Through string

// Ways of a check.
const (
	// ThroughVIP is the virtual address, by the clients' way from the dispatcher on; it needs ChecksConfig.Addresses.
	ThroughVIP Through = "vip"
	// ThroughAddress is the backend's own address, where the server must listen, too.
	ThroughAddress Through = "address"
)

// HealthConfig says how a pool's servers are asked whether they serve. Type alone is required.
type HealthConfig struct {
	Type health.Kind `yaml:"type"`
	// Through is what a probe is addressed to: vip, or address. vip when empty; address for scripts, which know no other.
	Through Through `yaml:"through,omitempty"`
	// Port is asked; that of the first service that leads to the pool when 0.
	Port uint16 `yaml:"port,omitempty"`
	// Interval is the time between probes (2 s); Timeout is how long one may take (1 s, or the interval if that is less).
	Interval time.Duration `yaml:"interval"`
	Timeout  time.Duration `yaml:"timeout"`
	// Rise is how many probes in a row must succeed to take a backend back (2), Fall how many must fail to take it out (3).
	Rise int `yaml:"rise"`
	Fall int `yaml:"fall"`
	// Path is what http asks for (/), Host the request's host (the address).
	Path string `yaml:"path,omitempty"`
	Host string `yaml:"host,omitempty"`
	// SNI is the server name of tls. Any certificate will do.
	SNI string `yaml:"sni,omitempty"`
	// Payload is what udp and tcp send. The answer must begin with Expect; for http it must stand in the first 64 KiB of the page.
	Payload string `yaml:"payload,omitempty"`
	Expect  string `yaml:"expect,omitempty"`
	// Command is the program that script runs, with its arguments; see health.ProbeConfig.
	Command []string `yaml:"command,omitempty,flow"`
}

// What a check's values may be.
const (
	minCheckTime  = 10 * time.Millisecond
	maxCheckTime  = time.Hour
	maxCheckCount = 1000
)

func (h *HealthConfig) setDefaults() {
	if h.Type == health.Script {
		defaultTo(&h.Through, ThroughAddress)
	}
	defaultTo(&h.Through, ThroughVIP)
	defaultTo(&h.Interval, health.DefaultInterval)
	defaultTo(&h.Timeout, min(health.DefaultTimeout, h.Interval))
	defaultTo(&h.Rise, health.DefaultRise)
	defaultTo(&h.Fall, health.DefaultFall)
	if h.Type == health.HTTP {
		defaultTo(&h.Path, "/")
	}
}

// check is how probes count.
func (h *HealthConfig) check() health.CheckConfig {
	return health.CheckConfig{Interval: h.Interval, Timeout: h.Timeout, Rise: h.Rise, Fall: h.Fall}
}

// probe is what a probe asks.
func (h *HealthConfig) probe() health.ProbeConfig {
	c := health.ProbeConfig{Kind: h.Type, Path: h.Path, Host: h.Host, Command: h.Command}
	switch h.Type {
	case health.HTTP:
		c.Body = h.Expect
	case health.TLS:
		c.Host = h.SNI
	case health.TCP, health.UDP:
		c.Send, c.Receive = []byte(h.Payload), []byte(h.Expect)
	case health.Script:
	}
	return c
}

// validate returns what is wrong with the section alone.
func (h *HealthConfig) validate() []error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	kinds := []health.Kind{health.TCP, health.HTTP, health.TLS, health.UDP, health.Script}
	if !slices.Contains(kinds, h.Type) {
		bad("type: %q: want one of %v", h.Type, kinds)
		return errs // what follows depends on it
	}
	for _, k := range []struct {
		key   string
		given bool
		types []health.Kind
	}{
		{"path", h.Path != "", []health.Kind{health.HTTP}},
		{"host", h.Host != "", []health.Kind{health.HTTP}},
		{"sni", h.SNI != "", []health.Kind{health.TLS}},
		{"payload", h.Payload != "", []health.Kind{health.UDP, health.TCP}},
		{"expect", h.Expect != "", []health.Kind{health.HTTP, health.UDP, health.TCP}},
		{"command", len(h.Command) > 0, []health.Kind{health.Script}},
	} {
		if k.given && !slices.Contains(k.types, h.Type) {
			bad("%s: not with type %s, only with %v", k.key, h.Type, k.types)
		}
	}
	switch {
	case h.Through != ThroughVIP && h.Through != ThroughAddress:
		bad("through: %q: want %s or %s", h.Through, ThroughVIP, ThroughAddress)
	case h.Type == health.Script && h.Through == ThroughVIP:
		bad("through: %s: a script runs on this host, where the virtual address is the host's own: want %s", ThroughVIP, ThroughAddress)
	}
	if h.Interval < minCheckTime || h.Interval > maxCheckTime {
		bad("interval: %v: want %v to %v", h.Interval, minCheckTime, maxCheckTime)
	}
	if h.Timeout < time.Millisecond || h.Timeout > maxCheckTime {
		bad("timeout: %v: want %v to %v", h.Timeout, time.Millisecond, maxCheckTime)
	}
	if h.Rise < 1 || h.Rise > maxCheckCount {
		bad("rise: %d: want 1 to %d", h.Rise, maxCheckCount)
	}
	if h.Fall < 1 || h.Fall > maxCheckCount {
		bad("fall: %d: want 1 to %d", h.Fall, maxCheckCount)
	}
	switch {
	case h.Type == health.HTTP && (!strings.HasPrefix(h.Path, "/") || strings.ContainsAny(h.Path, " \r\n")):
		bad("path: %q: want one that begins with /", h.Path)
	case h.Type == health.UDP && h.Payload == "":
		bad("payload: missing: nobody answers a datagram that says nothing")
	case h.Type == health.Script && (len(h.Command) == 0 || !filepath.IsAbs(h.Command[0])):
		bad("command: want the absolute path of a program, and its arguments")
	}
	if _, err := health.NewProber(h.probe()); err != nil && len(errs) == 0 {
		bad("type %s: %w", h.Type, err)
	}
	return errs
}

// validateChecks looks at the path of checks, and at the pools' checks together with what they need of it and of the services.
func (c *Config) validateChecks() error {
	var errs []error
	seen := map[bool]bool{}
	for _, a := range c.Checks.Addresses {
		switch {
		case !a.IsValid() || !a.Addr().IsGlobalUnicast() || a.Addr().Is4In6():
			errs = append(errs, fmt.Errorf("checks.addresses: %v: want an address of the backends' network and its prefix length", a))
		case seen[a.Addr().Is4()]:
			errs = append(errs, fmt.Errorf("checks.addresses: %v: one for each IP version is enough", a))
		case c.taken(a.Addr()):
			errs = append(errs, fmt.Errorf("checks.addresses: %v: want an address that nobody has", a))
		}
		seen[a.Addr().Is4()] = true
	}
	for i := range c.Pools {
		p := &c.Pools[i]
		if p.Health == nil {
			continue
		}
		bad := func(err error) { errs = append(errs, fmt.Errorf("pools[%d] %s: health: %w", i, p.Name, err)) }
		problems := p.Health.validate()
		if len(problems) == 0 {
			problems = c.checkTargets(p)
		}
		for _, err := range problems {
			bad(err)
		}
	}
	return errors.Join(errs...)
}

// taken reports whether an address is a service's or a peer's.
func (c *Config) taken(a netip.Addr) bool {
	return slices.ContainsFunc(c.Services, func(s ServiceConfig) bool {
		return slices.ContainsFunc(s.Addresses, func(at netip.AddrPort) bool { return at.Addr() == a })
	}) || slices.ContainsFunc(c.Peers, func(p PeerConfig) bool { return p.IP() == a })
}

// checkTargets returns why backends of a pool could not be asked.
func (c *Config) checkTargets(p *PoolConfig) []error {
	var errs []error
	for _, b := range p.Backends {
		i := slices.IndexFunc(c.Peers, func(peer PeerConfig) bool { return peer.Name == b.Host })
		if i < 0 || !c.Peers[i].IP().IsValid() {
			continue // said elsewhere
		}
		if _, err := c.checkedAt(p, c.Peers[i].IP()); err != nil {
			errs = append(errs, fmt.Errorf("backend %s: %w", b.Name(), err))
		}
	}
	return errs
}

// checkedAt returns what the probes of a pool's backend are addressed to.
func (c *Config) checkedAt(p *PoolConfig, backend netip.Addr) (netip.AddrPort, error) {
	h := p.Health
	var at netip.AddrPort // of the first service that leads to the pool, for the backend's IP version
	port := h.Port
	for _, s := range c.Services {
		if !s.leadsTo(p.Name) {
			continue
		}
		for _, a := range s.Addresses {
			defaultTo(&port, a.Port())
			if !at.IsValid() && a.Addr().Is4() == backend.Is4() {
				at = a
			}
		}
	}
	switch {
	case h.Through == ThroughAddress && port != 0:
		return netip.AddrPortFrom(backend, port), nil
	case port == 0:
		return netip.AddrPort{}, errors.New("port: missing: no service leads to the pool")
	case !c.Checks.reaches(backend):
		return netip.AddrPort{}, fmt.Errorf("through: %s: checks.addresses has none for %v: give a free address of its network, or write through: %s",
			ThroughVIP, backend, ThroughAddress)
	case !at.IsValid():
		return netip.AddrPort{}, fmt.Errorf("through: %s: no service with an address of %v's IP version leads to the pool: write through: %s",
			ThroughVIP, backend, ThroughAddress)
	}
	if h.Port != 0 {
		return netip.AddrPortFrom(at.Addr(), h.Port), nil
	}
	return at, nil
}

// leadsTo reports whether connections of the service may go to a pool.
func (s ServiceConfig) leadsTo(pool string) bool {
	return s.Default == pool || slices.ContainsFunc(s.Routes, func(r RouteConfig) bool { return r.Pool == pool })
}
