// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/rehome-net/rehome/handoff/peer"
)

// IP's numbers, which session.Key has.
const (
	protocolTCP = 6
	protocolUDP = 17
)

// Bounds of a configuration.
const (
	maxConfig   = 1 << 20 // bytes
	maxHold     = time.Second
	maxServices = 1024
	defaultPort = "7070"
)

// Config is a gateway's configuration, one YAML file. Unknown keys are errors.
type Config struct {
	// Host is this host's name, in its certificate and in the dispatcher's list of gateways.
	Host string `yaml:"host"`
	// Interfaces are those through which the servers' packets come.
	Interfaces []string `yaml:"interfaces"`
	// Dispatcher is who is told what servers say.
	Dispatcher HostConfig `yaml:"dispatcher"`
	// Servers are the hosts whose signalling is read.
	Servers []HostConfig `yaml:"servers"`
	// Services are the addresses of the signalling.
	Services []ServiceConfig `yaml:"services"`
	// TLS authenticates this host to the dispatcher, and the dispatcher to it.
	TLS peer.Files `yaml:"tls"`
	// Plaintext does without TLS. For a laboratory only: whoever reaches the dispatcher's port can announce flows.
	Plaintext bool `yaml:"plaintext"`
	// Hold is how long a reply is kept back, at most, until the dispatcher has confirmed it; 50 ms when zero.
	Hold time.Duration `yaml:"hold"`
	// Keep is how long a report that the dispatcher has not answered is kept, to be sent again; 5 s when zero.
	Keep time.Duration `yaml:"keep"`
	// Limits bound memory.
	Limits LimitsConfig `yaml:"limits"`
	// Metrics is the address of the Prometheus endpoint, host:port; none when empty.
	Metrics string `yaml:"metrics"`
}

// HostConfig is another host.
type HostConfig struct {
	Name string `yaml:"name"`
	// Address is its IP address; of the dispatcher that of its port for peers, ip:port.
	Address string `yaml:"address"`
	// MAC is its link-layer address; learned from the neighbour table when empty.
	MAC string `yaml:"mac"`
}

// ServiceConfig is a service whose signalling is read.
type ServiceConfig struct {
	Name string `yaml:"name"`
	// Mode is rtsp, sip or ftp.
	Mode Mode `yaml:"mode"`
	// Addresses are the virtual addresses with the ports of the signalling.
	Addresses []netip.AddrPort `yaml:"addresses"`
	// Servers are the names of the hosts that serve it; all when empty.
	Servers []string `yaml:"servers"`
}

// LimitsConfig bounds what is kept; zero values are defaults. What is beyond passes unread.
type LimitsConfig struct {
	// Flows is how many signalling flows are read at a time (65,536).
	Flows int `yaml:"flows"`
	// HoldFrames is how many frames of one flow are held (256), HoldBytes what all held frames take together (64 MiB).
	HoldFrames int `yaml:"hold_frames"`
	HoldBytes  int `yaml:"hold_bytes"`
	// Reports is how many reports wait for an answer (65,536).
	Reports int `yaml:"reports"`
	// Idle is when a flow without packets is forgotten (5 min). It is taken up again in its middle.
	Idle time.Duration `yaml:"idle"`
}

// LoadConfig reads the configuration file at path and validates it. Errors name the file, and the line or the key.
func LoadConfig(path string) (Config, error) {
	f, err := os.Open(path)
	if err != nil {
		return Config{}, fmt.Errorf("configuration: %w", err)
	}
	defer f.Close() //nolint:errcheck // read only
	c, err := ReadConfig(f)
	if err != nil {
		return Config{}, fmt.Errorf("configuration %s: %w", path, err)
	}
	return c, nil
}

// ReadConfig reads a configuration and validates it.
func ReadConfig(r io.Reader) (Config, error) {
	var c Config
	d := yaml.NewDecoder(io.LimitReader(r, maxConfig))
	d.KnownFields(true)
	if err := d.Decode(&c); err != nil {
		if errors.Is(err, io.EOF) {
			return Config{}, errors.New("the file is empty: at least host, interfaces, dispatcher, servers and services are needed")
		}
		return Config{}, err
	}
	var more any
	if err := d.Decode(&more); !errors.Is(err, io.EOF) {
		return Config{}, errors.New("more than one YAML document, or a file larger than 1 MiB")
	}
	if err := c.Validate(); err != nil {
		return Config{}, err
	}
	return c, nil
}

// Validate fills in defaults and returns everything that is wrong, each with what to do.
func (c *Config) Validate() error {
	c.setDefaults()
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.Host == "" {
		bad("host: missing: give this host's name as the dispatcher knows it")
	}
	if len(c.Interfaces) == 0 {
		bad("interfaces: missing: name the interface towards the servers")
	}
	for i, name := range c.Interfaces {
		if name == "" || slices.Contains(c.Interfaces[:i], name) {
			bad("interfaces: %q: empty or named twice", name)
		}
	}
	if c.Dispatcher.Name == "" {
		bad("dispatcher.name: missing")
	}
	if a, err := netip.ParseAddrPort(c.Dispatcher.Address); err != nil || a.Addr().IsUnspecified() {
		bad("dispatcher.address: %q: want ip:port of its port for peers", c.Dispatcher.Address)
	}
	if err := c.Dispatcher.validateMAC(); err != nil {
		bad("dispatcher.%w", err)
	}
	switch incomplete := c.TLS.Certificate == "" || c.TLS.Key == "" || c.TLS.Authority == ""; {
	case c.Plaintext && c.TLS != peer.Files{}:
		bad("plaintext: contradicts tls: remove one of the two")
	case !c.Plaintext && incomplete:
		bad("tls: certificate, key and authority are needed to talk to the dispatcher; plaintext: true does without, in a laboratory")
	}
	if c.Hold < 0 || c.Hold > maxHold {
		bad("hold: %v: at most %v: a server's retransmissions would begin", c.Hold, maxHold)
	}
	if c.Keep < 0 {
		bad("keep: %v: not negative", c.Keep)
	}
	if c.Metrics != "" {
		if _, _, err := net.SplitHostPort(c.Metrics); err != nil {
			bad("metrics: %w", err)
		}
	}
	errs = append(errs, c.Limits.validate(), c.validateServers(), c.validateServices())
	return errors.Join(errs...)
}

func (c *Config) setDefaults() {
	if c.Dispatcher.Address != "" && !strings.HasSuffix(c.Dispatcher.Address, "]") {
		if _, _, err := net.SplitHostPort(c.Dispatcher.Address); err != nil {
			c.Dispatcher.Address = net.JoinHostPort(c.Dispatcher.Address, defaultPort)
		}
	}
	defaultTo(&c.Hold, 50*time.Millisecond)
	defaultTo(&c.Keep, 5*time.Second)
	defaultTo(&c.Limits.Flows, 1<<16)
	defaultTo(&c.Limits.HoldFrames, 256)
	defaultTo(&c.Limits.HoldBytes, 64<<20)
	defaultTo(&c.Limits.Reports, 1<<16)
	defaultTo(&c.Limits.Idle, 5*time.Minute)
}

func defaultTo[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}

func (l LimitsConfig) validate() error {
	if l.Flows < 0 || l.HoldFrames < 0 || l.HoldBytes < 0 || l.Reports < 0 || l.Idle < 0 {
		return errors.New("limits: none can be negative")
	}
	return nil
}

func (h HostConfig) validateMAC() error {
	if h.MAC == "" {
		return nil
	}
	if mac, err := net.ParseMAC(h.MAC); err != nil || len(mac) != 6 {
		return fmt.Errorf("mac: %q: want an Ethernet address, 02:00:5e:10:00:01 for instance", h.MAC)
	}
	return nil
}

func (c *Config) validateServers() error {
	var errs []error
	if len(c.Servers) == 0 {
		errs = append(errs, errors.New("servers: missing: name the hosts whose signalling is to be read"))
	}
	names := map[string]bool{c.Dispatcher.Name: true}
	for i, s := range c.Servers {
		if s.Name == "" || names[s.Name] {
			errs = append(errs, fmt.Errorf("servers[%d]: name %q: empty or named twice", i, s.Name))
		}
		names[s.Name] = true
		if a, err := netip.ParseAddr(s.Address); err != nil || a.IsUnspecified() {
			errs = append(errs, fmt.Errorf("servers[%d] %s: address: %q: want its IP address", i, s.Name, s.Address))
		}
		if err := s.validateMAC(); err != nil {
			errs = append(errs, fmt.Errorf("servers[%d] %s: %w", i, s.Name, err))
		}
	}
	return errors.Join(errs...)
}

func (c *Config) validateServices() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if len(c.Services) == 0 || len(c.Services) > maxServices {
		bad("services: %d of them: want 1 to %d", len(c.Services), maxServices)
	}
	names, owners := map[string]bool{}, map[netip.AddrPort]string{}
	for i, s := range c.Services {
		if s.Name == "" || names[s.Name] {
			bad("services[%d]: name %q: empty or named twice", i, s.Name)
		}
		names[s.Name] = true
		if !slices.Contains([]Mode{ModeRTSP, ModeSIP, ModeFTP}, s.Mode) {
			bad("services[%d] %s: mode: %q: want %s, %s or %s; other services need no gateway", i, s.Name, s.Mode, ModeRTSP, ModeSIP, ModeFTP)
		}
		if len(s.Addresses) == 0 {
			bad("services[%d] %s: addresses: missing: give the virtual addresses with their ports", i, s.Name)
		}
		for _, a := range s.Addresses {
			if a.Addr().IsUnspecified() || a.Addr().Is4In6() || a.Port() == 0 {
				bad("services[%d] %s: addresses: %v: a virtual address and a port are needed", i, s.Name, a)
			}
			if owner, ok := owners[a]; ok {
				bad("services[%d] %s: addresses: %v is also %s's", i, s.Name, a, owner)
			}
			owners[a] = s.Name
		}
		for _, name := range s.Servers {
			if !slices.ContainsFunc(c.Servers, func(h HostConfig) bool { return h.Name == name }) {
				bad("services[%d] %s: servers: %q is not among the servers", i, s.Name, name)
			}
		}
	}
	return errors.Join(errs...)
}

// serves reports whether a server is one of the service's.
func (s ServiceConfig) serves(name string) bool {
	return len(s.Servers) == 0 || slices.Contains(s.Servers, name)
}

// protocols returns the transports of the service's signalling.
func (s ServiceConfig) protocols() []uint8 {
	if s.Mode == ModeSIP {
		return []uint8{protocolTCP, protocolUDP}
	}
	return []uint8{protocolTCP}
}

// limits returns what the configuration says to a watch.
func (c *Config) limits() limits {
	return limits{
		hold: c.Hold, frames: c.Limits.HoldFrames, bytes: c.Limits.HoldBytes, flows: c.Limits.Flows, idle: c.Limits.Idle, gap: gapTime,
	}
}

// gapTime is after how long bytes that are missing are not waited for any more: what was lost before the gateway, the server has repeated by then; what
// passed while nobody read does not come again.
const gapTime = 500 * time.Millisecond
