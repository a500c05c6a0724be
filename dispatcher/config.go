// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/rehome-net/rehome/dispatcher/session"
	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/handoff/gate/nft"
	"github.com/rehome-net/rehome/handoff/neighbour"
	"github.com/rehome-net/rehome/handoff/peer"
)

// Where things are unless the configuration says otherwise.
const (
	DefaultControlSocket = "/run/rehome/dispatcher.sock"
	DefaultPin           = "/sys/fs/bpf/rehome-dispatcher"
	DefaultPort          = "7070"

	pinOff = "off"
)

// maxConfig bounds a configuration file; ten thousand routes are about one megabyte.
const maxConfig = 16 << 20

// Config is a dispatcher's configuration, one YAML file. Unknown keys are errors.
type Config struct {
	// Host is this host's name among the peers, and in its certificate.
	Host string `yaml:"host"`
	// Interfaces are the network interfaces over which clients' packets come, and leave to the backends.
	Interfaces []string `yaml:"interfaces"`
	// Listen is the address for agents, host:port: the dispatcher is the entry of its services.
	Listen string `yaml:"listen"`
	// Control is where operators connect: a path of a UNIX socket, or host:port, which needs TLS.
	Control string `yaml:"control"`
	// Metrics is the address of the Prometheus endpoint, host:port; none when empty.
	Metrics string `yaml:"metrics"`
	// Pin is the directory of the BPF file system that keeps the flow table over a restart. "off" pins nothing: the
	// connections that were handed off end with the dispatcher.
	Pin string `yaml:"pin"`
	// Forward is how packets reach the backends.
	Forward ForwardConfig `yaml:"forward"`
	// TLS authenticates this host to others, and others to it.
	TLS TLSConfig `yaml:"tls"`
	// Plaintext does without TLS between hosts. For a laboratory only: whoever reaches the port can take connections.
	Plaintext bool `yaml:"plaintext"`
	// Workers is the number of listeners of each address, between which the kernel divides new connections (SO_REUSEPORT).
	// 0: one for each core.
	Workers int `yaml:"workers"`
	// Peers are the other hosts: all backends, and other dispatchers. This host may stand among them, so that all can have the
	// same list. Their order matters while they are new: see PeerConfig.ID.
	Peers []PeerConfig `yaml:"peers"`
	// Services are the virtual addresses, and what happens to the connections that come in there.
	Services []ServiceConfig `yaml:"services"`
	// Reports are what backends tell of themselves; Forecast, Admission and Shedding go by it.
	Reports   ReportsConfig   `yaml:"reports,omitempty"`
	Forecast  ForecastConfig  `yaml:"forecast,omitempty"`
	Admission AdmissionConfig `yaml:"admission,omitempty"`
	Shedding  SheddingConfig  `yaml:"shedding,omitempty"`
	// Gateways are the names of the hosts, as in their certificates, that may report what servers say in signalling (rehome gateway).
	Gateways []string `yaml:"gateways,omitempty"`
	// Checks is the way of pools' active checks to their backends.
	Checks ChecksConfig `yaml:"checks,omitempty"`
	// Sessions bounds the sessions of the modes rtsp, sip, ftp and udp.
	Sessions SessionsConfig `yaml:"sessions"`
	// Pools are the groups of backends that routes lead to.
	Pools []PoolConfig `yaml:"pools"`
}

// TLSConfig names PEM files. Certificates carry the host's name as a DNS subject alternative name.
type TLSConfig = peer.Files

// PeerConfig is another host.
type PeerConfig = neighbour.Peer

// SessionsConfig bounds the session table (package session); zero values are its defaults.
type SessionsConfig struct {
	// MaxFlows is how many flows all sessions together may have, PerClient those of one client.
	MaxFlows  int `yaml:"max_flows"`
	PerClient int `yaml:"per_client"`
	// Signalling and Media are after which silence flows are inactive; after twice that a session is forgotten.
	Signalling time.Duration `yaml:"signalling"`
	Media      time.Duration `yaml:"media"`
}

// maxAnnounced is how many announced and begun flows one session may have. Transfers of FTP stay in it for a second after their end.
const maxAnnounced = 1024

func (c SessionsConfig) table() session.Config {
	return session.Config{
		MaxFlows: c.MaxFlows, MaxPerClient: c.PerClient, MaxAnnounced: maxAnnounced, Timeouts: session.Timeouts{Signalling: c.Signalling, Media: c.Media},
	}
}

// validateSessions looks at what concerns sessions, and at who may speak of them.
func (c *Config) validateSessions() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	for _, f := range []struct {
		key   string
		value int
	}{{"max_flows", c.Sessions.MaxFlows}, {"per_client", c.Sessions.PerClient}} {
		if f.value < 0 || f.value > session.MaxFlows {
			bad("sessions.%s: %d: want 1 to %d, or 0 for the default", f.key, f.value, session.MaxFlows)
		}
	}
	for _, f := range []struct {
		key   string
		value time.Duration
	}{{"signalling", c.Sessions.Signalling}, {"media", c.Sessions.Media}} {
		if f.value != 0 && (f.value < session.MinTimeout || f.value > session.MaxTimeout) {
			bad("sessions.%s: %v: want %v to %v", f.key, f.value, session.MinTimeout, session.MaxTimeout)
		}
	}
	backends := make(map[string]bool)
	for _, p := range c.Pools {
		for _, b := range p.Backends {
			backends[b.Host] = true
		}
	}
	for i, name := range c.Gateways {
		switch {
		case name == "" || slices.Contains(c.Gateways[:i], name):
			bad("gateways[%d]: %q: empty or named twice", i, name)
		case backends[name]:
			bad("gateways[%d]: %s is a backend: its agent's connections could not be told from a gateway's: give the gateway a certificate with a name of its own", i, name)
		}
	}
	return errors.Join(errs...)
}

// ForwardMode is where in the kernel packets are forwarded.
type ForwardMode string

// Forwarding modes.
const (
	ForwardTCX ForwardMode = "tcx" // everywhere, and nearly at wire speed
	ForwardXDP ForwardMode = "xdp" // in the driver, for physical network interfaces
	ForwardNFT ForwardMode = "nft" // by nftables, where the kernel refuses BPF: connections only, and slower (package nft)
)

// Shortcut is whether packets may go on at the other end of the interface's veth pair at once.
type Shortcut string

// Shortcuts.
const (
	ShortcutAuto Shortcut = "auto" // where that is seen to work
	ShortcutOff  Shortcut = "off"  // packets always leave by the interface itself, where captures and counters see them
)

// ForwardConfig says how packets reach the backends; zero values are defaults.
type ForwardConfig struct {
	// Mode is where packets are forwarded; tcx when empty.
	Mode ForwardMode `yaml:"mode"`
	// MaxFlows is the size of the flow table (1,048,576). When it is full, new connections are refused.
	MaxFlows uint32 `yaml:"max_flows"`
	// IdleTimeout is when a flow without packets is forgotten (4 h), should nobody have reported its end.
	IdleTimeout time.Duration `yaml:"idle_timeout"`
	// HoldTotal bounds what is held of all connections together while they are handed over, in bytes: 8 MiB at least, which one of them may
	// have (256 MiB). With mode nft nothing is held.
	HoldTotal int `yaml:"hold_total"`
	// Shortcut is for mode tcx in a container; auto when empty.
	Shortcut Shortcut `yaml:"shortcut"`
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
	text, err := io.ReadAll(io.LimitReader(r, maxConfig+1))
	if err != nil {
		return Config{}, err
	}
	if len(text) > maxConfig {
		return Config{}, fmt.Errorf("the file is larger than %d MiB", maxConfig>>20)
	}
	var c Config
	d := yaml.NewDecoder(bytes.NewReader(text))
	d.KnownFields(true)
	if err := d.Decode(&c); err != nil {
		if errors.Is(err, io.EOF) {
			return Config{}, errors.New("the file is empty: at least host, interfaces, services and pools are needed")
		}
		return Config{}, err
	}
	var more any
	if err := d.Decode(&more); !errors.Is(err, io.EOF) {
		return Config{}, errors.New("more than one YAML document")
	}
	if err := c.Validate(); err != nil {
		return Config{}, err
	}
	return c, nil
}

// Validate fills in defaults and returns everything that is wrong, each with what to do.
func (c *Config) Validate() error {
	c.setDefaults()
	var nftErr error
	if c.Forward.Mode == ForwardNFT {
		if nftErr = nft.Check(needsOf(c)); nftErr != nil {
			nftErr = fmt.Errorf("forward.mode: nft: %w", nftErr)
		}
	}
	return errors.Join(
		nftErr, c.validateHost(), c.validatePeers(), c.validatePools(), c.validateServices(), c.validateSessions(), c.validateManagement(),
	)
}

func (c *Config) setDefaults() {
	defaultTo(&c.Listen, ":"+DefaultPort)
	defaultTo(&c.Control, DefaultControlSocket)
	defaultTo(&c.Pin, DefaultPin)
	defaultTo(&c.Forward.Mode, ForwardTCX)
	defaultTo(&c.Forward.MaxFlows, 1<<20)
	defaultTo(&c.Forward.IdleTimeout, 4*time.Hour)
	defaultTo(&c.Forward.HoldTotal, 256<<20)
	defaultTo(&c.Forward.Shortcut, ShortcutAuto)
	for i := range c.Peers {
		p := &c.Peers[i]
		if i < gate.MaxNodes && p.ID == 0 {
			p.Place = uint16(i) + 1
			p.ID = p.Place
		}
		if p.Address != "" && !strings.HasSuffix(p.Address, "]") {
			if _, _, err := net.SplitHostPort(p.Address); err != nil {
				p.Address = net.JoinHostPort(p.Address, DefaultPort)
			}
		}
	}
	c.Peers = slices.DeleteFunc(c.Peers, func(p PeerConfig) bool { return p.Name == c.Host && c.Host != "" })
	if len(c.Checks.Addresses) > 0 && len(c.Interfaces) > 0 {
		defaultTo(&c.Checks.Interface, c.Interfaces[0])
	}
	for i := range c.Services {
		c.Services[i].Limits.setDefaults()
	}
	for i := range c.Pools {
		c.Pools[i].setDefaults()
	}
}

// defaultTo gives a value that nobody has set its default.
func defaultTo[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}

// validateHost looks at what concerns this host alone.
func (c *Config) validateHost() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.Host == "" {
		bad("host: missing: give this host's name as the peers know it")
	}
	if len(c.Interfaces) == 0 {
		bad("interfaces: missing: name the interface over which clients are reached")
	}
	for i, name := range c.Interfaces {
		if name == "" || slices.Contains(c.Interfaces[:i], name) {
			bad("interfaces: %q: empty or named twice", name)
		}
	}
	if err := checkHostPort(c.Listen); err != nil {
		bad("listen: %w", err)
	}
	if !c.ControlIsPath() {
		if err := checkHostPort(c.Control); err != nil {
			bad("control: %w, or a path that begins with /", err)
		}
		if c.TLS.Certificate == "" {
			bad("control: %s is not a path, and operators over TCP need tls", c.Control)
		}
	}
	if c.Metrics != "" {
		if err := checkHostPort(c.Metrics); err != nil {
			bad("metrics: %w", err)
		}
	}
	if c.Pin != pinOff && !strings.HasPrefix(c.Pin, "/") {
		bad("pin: %q: want a directory below /sys/fs/bpf, or off", c.Pin)
	}
	if c.Workers < 0 || c.Workers > maxWorkers {
		bad("workers: %d: want 1 to %d, or 0 for one for each core", c.Workers, maxWorkers)
	}
	switch incomplete := c.TLS.Certificate == "" || c.TLS.Key == "" || c.TLS.Authority == ""; {
	case c.Plaintext && c.TLS != TLSConfig{}:
		bad("plaintext: contradicts tls: remove one of the two")
	case !c.Plaintext && incomplete && (len(c.Peers) > 0 || c.TLS != TLSConfig{}):
		bad("tls: certificate, key and authority are needed to talk to peers; plaintext: true does without, in a laboratory")
	}
	errs = append(errs, c.Forward.validate())
	return errors.Join(errs...)
}

// Limits of what can be configured, far above what serves anybody: a slip of the hand shall not look like a wish.
const (
	maxWorkers = 1024
	maxFlows   = 1 << 26
	minTimeout = time.Second
	// minHoldTotal is what gate.Config lets one flow have.
	minHoldTotal = 8 << 20
)

func (f ForwardConfig) validate() error {
	switch {
	case f.Mode != ForwardTCX && f.Mode != ForwardXDP && f.Mode != ForwardNFT:
		return fmt.Errorf("forward.mode: %q: want %s, %s or %s", f.Mode, ForwardTCX, ForwardXDP, ForwardNFT)
	case f.Shortcut != ShortcutAuto && f.Shortcut != ShortcutOff:
		return fmt.Errorf("forward.shortcut: %q: want %s or %s", f.Shortcut, ShortcutAuto, ShortcutOff)
	case f.MaxFlows > maxFlows:
		return fmt.Errorf("forward.max_flows: %d: at most %d", f.MaxFlows, maxFlows)
	case f.HoldTotal < minHoldTotal:
		return fmt.Errorf("forward.hold_total: %d: at least %d", f.HoldTotal, minHoldTotal)
	case f.IdleTimeout < minTimeout:
		return fmt.Errorf("forward.idle_timeout: %v: at least %v", f.IdleTimeout, minTimeout)
	}
	return nil
}

func (c *Config) validatePeers() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	names := map[string]bool{}
	ids := map[uint16]string{}
	for i, p := range c.Peers {
		if err := p.Validate(); err != nil {
			bad("peers[%d] %s: %w", i, p.Name, err)
			continue
		}
		if names[p.Name] {
			bad("peers[%d]: the name %q stands twice", i, p.Name)
		}
		names[p.Name] = true
		if other, ok := ids[p.ID]; ok {
			bad("peers[%d] %s: id %d is also %s's: give each peer an id of its own", i, p.Name, p.ID, other)
		}
		ids[p.ID] = p.Name
	}
	return errors.Join(errs...)
}

// checkHostPort says what is wrong with an address to listen on.
func checkHostPort(address string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("%w: want host:port", err)
	}
	if strings.HasPrefix(host, "/") {
		return fmt.Errorf("%s: want host:port", address)
	}
	if _, err := net.LookupPort("tcp", port); err != nil || port == "" {
		return fmt.Errorf("%s: %q is no port", address, port)
	}
	return nil
}

// PinPath returns the directory in which the flow table is pinned, empty when nothing is.
func (c *Config) PinPath() string {
	if c.Pin == pinOff {
		return ""
	}
	return c.Pin
}

// ControlIsPath reports whether operators connect to a UNIX socket.
func (c *Config) ControlIsPath() bool { return strings.HasPrefix(c.Control, "/") }
