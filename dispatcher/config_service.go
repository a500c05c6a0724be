// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/dispatcher/route"
)

// Mode is what a service's clients speak, and so what routes can go by.
type Mode string

// Modes.
const (
	ModeHTTP Mode = "http" // HTTP/1.0 and HTTP/1.1
	ModeTLS  Mode = "tls"  // TLS, which is not ended here: the ClientHello decides
	ModeH2   Mode = "h2"   // HTTP/2 with prior knowledge
	ModeTCP  Mode = "tcp"  // anything; the first bytes are not looked at
	ModeUDP  Mode = "udp"  // datagrams: a session is a flow
	ModeRTSP Mode = "rtsp" // RTSP over TCP, its media over UDP
	ModeSIP  Mode = "sip"  // SIP over UDP and TCP, its media over UDP
	ModeFTP  Mode = "ftp"  // FTP, control and data connections
)

func modes() []Mode {
	return []Mode{ModeHTTP, ModeTLS, ModeH2, ModeTCP, ModeUDP, ModeRTSP, ModeSIP, ModeFTP}
}

// sessions reports whether flows of the mode belong to sessions, which are sent to their servers from their first packet on.
func (m Mode) sessions() bool { return m == ModeUDP || m.signals() }

// signals reports whether what clients say announces further flows.
func (m Mode) signals() bool { return m == ModeRTSP || m == ModeSIP || m == ModeFTP }

// ServiceConfig is a service: virtual addresses that this host answers for, and where their connections go.
type ServiceConfig struct {
	Name string `yaml:"name"`
	// Addresses are the service's virtual addresses with their ports.
	Addresses []netip.AddrPort `yaml:"addresses"`
	// Mode is what the clients speak.
	Mode Mode `yaml:"mode"`
	// ProxyProtocol means that every connection begins with a PROXY protocol header. It stays in front of what the
	// backend reads.
	ProxyProtocol bool `yaml:"proxy_protocol"`
	// Socketless means that the clients speak first, and that connections to unmodified servers get no socket here: the SYN is answered by BPF,
	// and the backend's kernel makes the connection of the first request (package synproxy). All other connections of the service
	// go the way of sockets.
	Socketless bool `yaml:"socketless"`
	// Sticky says which new flows of the modes udp, rtsp, sip and ftp go to the server of a session that there is: "client" those whose client
	// has one, "session" those that go on with one by their signalling (SIP's Call-ID), "none" only what was announced. Empty: client for udp
	// and ftp, whose data connections could not be told apart if servers use the same ports, session for rtsp and sip. Client includes session.
	// In other modes pools say what sticks.
	Sticky Sticky `yaml:"sticky,omitempty"`
	// Routes lead to pools by what the first request shows; package route says which one decides.
	Routes []RouteConfig `yaml:"routes,omitempty"`
	// Default is the pool for what no route fits; such a connection is refused when it is empty.
	Default string `yaml:"default"`
	// Limits bound what clients can use up.
	Limits LimitsConfig `yaml:"limits"`
}

// RouteConfig is a route. All its conditions must hold, and there is at least one; package route says what they mean.
type RouteConfig struct {
	// Host and Path, Header and Cookie are for the modes http and h2.
	Host   string      `yaml:"host,omitempty"`
	Path   string      `yaml:"path,omitempty"`
	Header MatchConfig `yaml:"header,omitempty"`
	Cookie MatchConfig `yaml:"cookie,omitempty"`
	// SNI and ALPN are for the mode tls.
	SNI  string `yaml:"sni,omitempty"`
	ALPN string `yaml:"alpn,omitempty"`
	// Pool is where the connection goes.
	Pool string `yaml:"pool"`
}

// MatchConfig is a condition on one header or cookie.
type MatchConfig struct {
	Name string `yaml:"name"`
	// Value is the whole value; any value when empty.
	Value string `yaml:"value"`
}

// LimitsConfig bounds what a service's clients can use up; zero values are defaults.
type LimitsConfig struct {
	// PeekBytes is how much is read at most to find a route (16,384).
	PeekBytes int `yaml:"peek_bytes"`
	// PeekTime is how long a client may take to send that much (5 s).
	PeekTime time.Duration `yaml:"peek_time"`
	// Peeking is how many connections may be waiting for their first request at a time (16,384).
	Peeking int `yaml:"peeking"`
	// Connections is how many the service may have at a time; 0: as many as the flow table takes.
	Connections int `yaml:"connections"`
}

// What limits may be. Bytes are the parsers' own bounds.
const (
	minPeekBytes   = 256
	maxPeekBytes   = 1 << 20
	minPeekTime    = time.Millisecond
	maxPeekTime    = 10 * time.Minute
	maxConnections = maxFlows
)

func (l *LimitsConfig) setDefaults() {
	defaultTo(&l.PeekBytes, 16<<10)
	defaultTo(&l.PeekTime, 5*time.Second)
	defaultTo(&l.Peeking, 16<<10)
}

func (l LimitsConfig) validate() error {
	switch {
	case l.PeekBytes < minPeekBytes || l.PeekBytes > maxPeekBytes:
		return fmt.Errorf("limits.peek_bytes: %d: want %d to %d", l.PeekBytes, minPeekBytes, maxPeekBytes)
	case l.PeekTime < minPeekTime || l.PeekTime > maxPeekTime:
		return fmt.Errorf("limits.peek_time: %v: want %v to %v", l.PeekTime, minPeekTime, maxPeekTime)
	case l.Peeking < 1 || l.Peeking > maxConnections:
		return fmt.Errorf("limits.peeking: %d: want 1 to %d", l.Peeking, maxConnections)
	case l.Connections < 0 || l.Connections > maxConnections:
		return fmt.Errorf("limits.connections: %d: want 1 to %d, or 0 for no limit", l.Connections, maxConnections)
	}
	return nil
}

// Rules returns the service's routes as package route compiles them.
func (s ServiceConfig) Rules() []route.Rule {
	rules := make([]route.Rule, len(s.Routes))
	for i, r := range s.Routes {
		rules[i] = route.Rule{
			Host: r.Host, Path: r.Path, SNI: r.SNI, ALPN: r.ALPN, Pool: r.Pool,
			Header: route.Match{Name: r.Header.Name, Value: r.Header.Value},
			Cookie: route.Match{Name: r.Cookie.Name, Value: r.Cookie.Value},
		}
	}
	return rules
}

// protocols are what a service of the mode is reached by; an address belongs to one service in each.
func (m Mode) protocols() []uint8 {
	switch m {
	case ModeUDP:
		return []uint8{unix.IPPROTO_UDP}
	case ModeSIP:
		return []uint8{unix.IPPROTO_UDP, unix.IPPROTO_TCP}
	}
	return []uint8{unix.IPPROTO_TCP}
}

func (m Mode) validate() error {
	if slices.Contains(modes(), m) {
		return nil
	}
	if m == "" {
		return fmt.Errorf("mode: missing: want one of %v", modes())
	}
	return fmt.Errorf("mode: %q: want one of %v", m, modes())
}

// socketless reports whether any service is.
func (c *Config) socketless() bool {
	return slices.ContainsFunc(c.Services, func(s ServiceConfig) bool { return s.Socketless })
}

// hasSessions reports whether flows of any service belong to sessions.
func (c *Config) hasSessions() bool {
	return slices.ContainsFunc(c.Services, func(s ServiceConfig) bool { return s.Mode.sessions() })
}

func (c *Config) validateServices() error {
	var errs []error
	if c.socketless() && len(c.Interfaces) != 1 {
		errs = append(errs, errors.New("services: socketless: it needs a host with one interface"))
	}
	if len(c.Services) == 0 {
		errs = append(errs, errors.New("services: missing: nothing would be served"))
	}
	pools := make(map[string]*PoolConfig, len(c.Pools))
	for i := range c.Pools {
		pools[c.Pools[i].Name] = &c.Pools[i]
	}
	names := map[string]bool{}
	type endpoint struct {
		protocol uint8
		address  netip.AddrPort
	}
	owners := map[endpoint]string{}
	for i, s := range c.Services {
		bad := func(err error) { errs = append(errs, fmt.Errorf("services[%d] %s: %w", i, s.Name, err)) }
		for _, err := range s.validate(pools) {
			bad(err)
		}
		if names[s.Name] {
			bad(fmt.Errorf("name: %q stands twice", s.Name))
		}
		names[s.Name] = true
		for _, a := range s.Addresses {
			for _, protocol := range s.Mode.protocols() {
				e := endpoint{protocol, a}
				if owner, ok := owners[e]; ok {
					bad(fmt.Errorf("addresses: %v is also %s's: an address with its port belongs to one service", a, owner))
				}
				owners[e] = s.Name
			}
		}
	}
	return errors.Join(errs...)
}

// validate returns everything that is wrong with the service, given the pools by name.
func (s ServiceConfig) validate(pools map[string]*PoolConfig) []error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if s.Name == "" {
		bad("name: missing")
	}
	if len(s.Addresses) == 0 {
		bad("addresses: missing: give the virtual addresses with their ports")
	}
	for _, a := range s.Addresses {
		if err := checkVirtual(a); err != nil {
			bad("addresses: %w", err)
		}
	}
	if err := s.Limits.validate(); err != nil {
		bad("%w", err)
	}
	if err := s.Mode.validate(); err != nil {
		bad("%w", err)
		return errs // what follows depends on it
	}
	if s.ProxyProtocol && s.Mode.sessions() {
		bad("proxy_protocol: not with mode %s: no connection ends here, and none is looked at", s.Mode)
	}
	if err := s.validateSticky(); err != nil {
		bad("sticky: %w", err)
	}
	if s.Socketless && s.Mode.sessions() {
		bad("socketless: not with mode %s: no connection ends here anyway", s.Mode)
	}
	if s.Default == "" && len(s.Routes) == 0 {
		bad("default: missing: without routes it names the pool")
	}
	if s.Default != "" {
		if err := s.validateUse(s.Default, pools); err != nil {
			bad("default: %w", err)
		}
	}
	return append(errs, s.validateRoutes(pools)...)
}

func (s ServiceConfig) validateRoutes(pools map[string]*PoolConfig) []error {
	if len(s.Routes) > 0 && (s.Mode == ModeTCP || s.Mode.sessions()) {
		return []error{fmt.Errorf("routes: mode %s shows nothing to route by: name the pool in default", s.Mode)}
	}
	var errs []error
	uses := map[string]error{} // of pools that have been looked at
	for i, r := range s.Routes {
		if err := r.validate(s.Mode); err != nil {
			errs = append(errs, fmt.Errorf("routes[%d]: %w", i, err))
		}
		if r.Pool == "" {
			continue // route.Compile says so
		}
		err, seen := uses[r.Pool]
		if !seen {
			err = s.validateUse(r.Pool, pools)
			uses[r.Pool] = err
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("routes[%d]: pool: %w", i, err))
		}
	}
	if len(errs) > 0 {
		return errs
	}
	_, err := route.Compile(s.Rules())
	var joined interface{ Unwrap() []error }
	if errors.As(err, &joined) {
		return joined.Unwrap()
	}
	return nil
}

// validate says which condition is never seen in that mode.
func (r RouteConfig) validate(mode Mode) error {
	inHTTP := []struct {
		key   string
		given bool
	}{
		{"host", r.Host != ""},
		{"path", r.Path != ""},
		{"header", r.Header != MatchConfig{}},
		{"cookie", r.Cookie != MatchConfig{}},
	}
	inTLS := []struct {
		key   string
		given bool
	}{{"sni", r.SNI != ""}, {"alpn", r.ALPN != ""}}
	never, hint := inTLS, "use host"
	if mode == ModeTLS {
		never, hint = inHTTP, "it is encrypted: use sni and alpn"
	}
	for _, c := range never {
		if c.given {
			return fmt.Errorf("%s: not seen in mode %s: %s", c.key, mode, hint)
		}
	}
	for _, c := range append(inHTTP, inTLS...) {
		if c.given {
			return nil
		}
	}
	return errors.New("no condition: the pool for everything else is the service's default")
}

// validateUse says why the service cannot use the pool of that name.
func (s ServiceConfig) validateUse(name string, pools map[string]*PoolConfig) error {
	p := pools[name]
	if p == nil {
		return fmt.Errorf("%q is not among the pools", name)
	}
	switch moves := s.Mode.signals() && p.Delivery == DeliveryLinked; {
	case !s.Mode.sessions() || p.Delivery == DeliveryUnmodified || moves:
	case s.Mode.signals():
		return fmt.Errorf("%s is delivered %s: mode %s hands nothing off: want %s, or %s for servers whose sessions can move", name, p.Delivery, s.Mode, DeliveryUnmodified, DeliveryLinked)
	default:
		return fmt.Errorf("%s is delivered %s: mode %s hands nothing off: want %s", name, p.Delivery, s.Mode, DeliveryUnmodified)
	}
	if err := s.validateStickyUse(p); err != nil {
		return err
	}
	source, _ := p.HashBy()
	seen := source == HashClient || source == ""
	switch s.Mode {
	case ModeHTTP, ModeH2:
		seen = true
	case ModeTLS:
		seen = seen || source == HashHost
	default:
	}
	if !seen {
		return fmt.Errorf("%s hashes by %s, which is not seen in mode %s: want hash: client", name, source, s.Mode)
	}
	return nil
}

// checkVirtual says why a is no virtual address.
func checkVirtual(a netip.AddrPort) error {
	switch ip := a.Addr(); {
	case !a.IsValid() || ip.IsUnspecified() || a.Port() == 0:
		return fmt.Errorf("%v: a virtual address and a port are needed", a)
	case ip.Is4In6():
		return fmt.Errorf("%v: write it as IPv4: %v", a, netip.AddrPortFrom(ip.Unmap(), a.Port()))
	case ip.Zone() != "" || ip.IsMulticast() || ip.IsLinkLocalUnicast():
		return fmt.Errorf("%v: want an address that routers forward", a)
	}
	return nil
}
