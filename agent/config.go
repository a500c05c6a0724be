// SPDX-License-Identifier: Apache-2.0

package agent

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

	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/handoff/migration"
	"github.com/rehome-net/rehome/handoff/neighbour"
	"github.com/rehome-net/rehome/handoff/peer"
)

// Where things are unless the configuration says otherwise.
const (
	DefaultApplicationSocket = "/run/rehome/agent.sock"
	DefaultControlSocket     = "/run/rehome/control.sock"
	DefaultPin               = "/sys/fs/bpf/rehome"
	DefaultPort              = "7070"

	pinOff = "off"

	// criuEnvironment names the CRIU to use where the configuration names none.
	criuEnvironment = "REHOME_CRIU"
)

// Config is an agent's configuration, one YAML file. Unknown keys are errors.
type Config struct {
	// Host is this host's name among the peers, and in its certificate.
	Host string `yaml:"host"`
	// Interfaces are the network interfaces over which clients' packets come, and leave; the gate stands there.
	Interfaces []string `yaml:"interfaces"`
	// Listen is the address for other agents, host:port.
	Listen string `yaml:"listen"`
	// Control is where operators connect: a path of a UNIX socket, or host:port, which needs TLS.
	Control string `yaml:"control"`
	// Applications is the path of the UNIX socket for applications.
	Applications string `yaml:"applications"`
	// Metrics is the address of the Prometheus endpoint, host:port; none when empty.
	Metrics string `yaml:"metrics"`
	// TLS authenticates this host to others, and others to it.
	TLS peer.Files `yaml:"tls"`
	// Plaintext does without TLS between hosts. For a laboratory only: whoever reaches the port can take connections.
	Plaintext bool `yaml:"plaintext"`
	// Peers are the other hosts. This host may stand among them, so that all can have the same list. Their order
	// matters: see PeerConfig.ID.
	Peers []PeerConfig `yaml:"peers"`
	// Services are what is served, with the entry and the servers of each.
	Services []ServiceConfig `yaml:"services"`
	// Gate bounds the packet gate.
	Gate GateConfig `yaml:"gate"`
	// Migration bounds a move.
	Migration MigrationConfig `yaml:"migration"`
	// Report says which dispatchers hear that this host is alive, and how loaded it is.
	Report ReportConfig `yaml:"report"`
	// Process bounds the move of whole processes.
	Process ProcessConfig `yaml:"process"`
}

// PeerConfig is another host.
type PeerConfig = neighbour.Peer

// ServiceConfig is a service: an address that several servers hold and one host answers for.
type ServiceConfig struct {
	Name string `yaml:"name"`
	// Addresses are the service's virtual addresses with their ports.
	Addresses []netip.AddrPort `yaml:"addresses"`
	// Entry is the host that answers ARP and ND for the addresses and decides where a flow's packets go.
	Entry string `yaml:"entry"`
	// Servers are the hosts that serve it.
	Servers []string `yaml:"servers"`
	// Process is set when the service is where its process is, which moves as a whole: new connections go only to those servers on
	// which somebody listens at one of the addresses.
	Process bool `yaml:"process"`
}

// GateConfig bounds the packet gate; zero values are defaults.
type GateConfig struct {
	// Mode is how packets are held and forwarded: auto (BPF), bpf, or nft on a host whose kernel refuses BPF. With nft this host is no entry
	// and serves with delivery linked and fd; what comes for a connection while it is being moved is dropped and sent again.
	Mode GateMode `yaml:"mode"`
	// Pin is the directory of the BPF file system that keeps the gate's state over a restart (/sys/fs/bpf/rehome when
	// empty). "off" pins nothing: an agent that is killed then takes its holds with it, and what a frozen connection
	// acknowledges after that is lost.
	Pin string `yaml:"pin"`
	// MaxFlows is the size of the flow table.
	MaxFlows uint32 `yaml:"max_flows"`
	// HoldPackets and HoldBytes bound what is held for one flow: a client's congestion window must fit (32,768 packets,
	// 64 MiB).
	HoldPackets int `yaml:"hold_packets"`
	HoldBytes   int `yaml:"hold_bytes"`
	// HoldTotal bounds what is held of all flows together, in bytes: HoldBytes at least (256 MiB, or HoldBytes if that is more).
	HoldTotal int `yaml:"hold_total"`
	// IdleTimeout is when an entry forgets a flow without packets.
	IdleTimeout time.Duration `yaml:"idle_timeout"`
	// StrayTime is how long a source forwards packets that still come to it; 10 s when zero.
	StrayTime time.Duration `yaml:"stray_time"`
	// ReportEnds tells entries when connections of this host end, so that they forget them before IdleTimeout; on unless set to
	// false. It sees the connections of servers in this host's cgroup v2 hierarchy.
	ReportEnds *bool `yaml:"report_ends"`
	// EndLinger is how much later they are told when this host closed first, and its kernel still answers the client's last
	// packets; 65 s when zero, a little more than the kernel's TIME_WAIT.
	EndLinger time.Duration `yaml:"end_linger"`
}

// MigrationConfig bounds moves; zero values are defaults.
type MigrationConfig struct {
	// Limit is the time for one move (10 s), after which its connection goes on at the source.
	Limit time.Duration `yaml:"limit"`
	// Concurrency is how many moves an operation has in flight (64).
	Concurrency int `yaml:"concurrency"`
	// Incoming is how many moves this host takes part in as target at a time (1024).
	Incoming int `yaml:"incoming"`
	// StateBytes bounds an application's State (64 MiB); QueueBytes a socket's send and receive queue, each (64 MiB).
	StateBytes int `yaml:"state_bytes"`
	QueueBytes int `yaml:"queue_bytes"`
	// BufferBytes bounds what all moves under way keep in this host's memory together, as sources and as targets (1 GiB). A move
	// that would need more is given up, and its connection goes on at its source.
	BufferBytes int `yaml:"buffer_bytes"`
	// SeedWindow carries the congestion window to the target; on unless set to false.
	SeedWindow *bool `yaml:"seed_window"`
}

// ProcessConfig bounds the moves of whole processes; zero values are defaults.
type ProcessConfig struct {
	// CRIU is the program, 4.2 or newer ($REHOME_CRIU, else "criu" in PATH).
	CRIU string `yaml:"criu"`
	// Limit is the time for one move (1 m), after which the process goes on at the source.
	Limit time.Duration `yaml:"limit"`
	// ImageBytes is the memory that one image may take at the target, besides the process's own (a half of the host's memory).
	ImageBytes int64 `yaml:"image_bytes"`
	// Lazy lets processes that leave this host run at the target before their memory is there, as migrate --lazy does (no): what fails
	// until it has followed takes the process with it.
	Lazy bool `yaml:"lazy"`
	// Incoming is how many processes may move here at a time (4).
	Incoming int `yaml:"incoming"`
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
	d := yaml.NewDecoder(r)
	d.KnownFields(true)
	if err := d.Decode(&c); err != nil {
		if errors.Is(err, io.EOF) {
			return Config{}, errors.New("the file is empty: at least host and interfaces are needed")
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
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.Host == "" {
		bad("host: missing: give this host's name as the peers know it")
	}
	if len(c.Interfaces) == 0 {
		bad("interfaces: missing: name the interface over which clients are reached")
	}
	if _, _, err := net.SplitHostPort(c.Listen); err != nil {
		bad("listen: %v: want host:port", err)
	}
	if !c.Plaintext && (c.TLS.Certificate == "" || c.TLS.Key == "" || c.TLS.Authority == "") && len(c.Peers) > 0 {
		bad("tls: certificate, key and authority are needed to talk to peers; plaintext: true does without, in a laboratory")
	}
	if c.Plaintext && c.TLS != (peer.Files{}) {
		bad("plaintext: contradicts tls: remove one of the two")
	}
	if !c.controlIsPath() && c.TLS.Certificate == "" {
		bad("control: %s is not a path, and operators over TCP need tls", c.Control)
	}
	if c.Process.Limit > migration.MaxLease {
		bad("process.limit: %v: at most %v", c.Process.Limit, migration.MaxLease)
	}
	if c.Migration.Limit > migration.MaxLease {
		bad("migration.limit: %v: at most %v", c.Migration.Limit, migration.MaxLease)
	}
	hosts := map[string]bool{c.Host: true}
	ids := map[uint16]string{0: c.Host}
	for i, p := range c.Peers {
		if err := p.Validate(); err != nil {
			bad("peers[%d] %s: %w", i, p.Name, err)
		}
		if hosts[p.Name] {
			bad("peers[%d]: the name %q stands twice", i, p.Name)
		}
		hosts[p.Name] = true
		if other, ok := ids[p.ID]; ok {
			bad("peers[%d] %s: id %d is also %s's: give each peer an id of its own", i, p.Name, p.ID, other)
		}
		ids[p.ID] = p.Name
	}
	if c.Gate.HoldTotal < c.Gate.HoldBytes {
		bad("gate.hold_total: %d: gate.hold_bytes at least, which is %d: what one flow may have, all may have together", c.Gate.HoldTotal, c.Gate.HoldBytes)
	}
	if err := c.validateGate(); err != nil {
		errs = append(errs, err)
	}
	if err := c.validateReport(); err != nil {
		bad("report.%w", err)
	}
	names := map[string]bool{}
	for i, s := range c.Services {
		if err := s.validate(hosts); err != nil {
			bad("services[%d] %s: %w", i, s.Name, err)
		}
		if names[s.Name] {
			bad("services[%d]: the name %q stands twice", i, s.Name)
		}
		names[s.Name] = true
	}
	return errors.Join(errs...)
}

func (c *Config) setDefaults() {
	if c.Listen == "" {
		c.Listen = ":" + DefaultPort
	}
	if c.Control == "" {
		c.Control = DefaultControlSocket
	}
	if c.Applications == "" {
		c.Applications = DefaultApplicationSocket
	}
	for i := range c.Peers {
		p := &c.Peers[i]
		if p.ID == 0 && i < 1<<16-1 {
			p.ID = uint16(i) + 1
		}
		if p.Address != "" && !strings.HasSuffix(p.Address, "]") {
			if _, _, err := net.SplitHostPort(p.Address); err != nil {
				p.Address = net.JoinHostPort(p.Address, DefaultPort)
			}
		}
	}
	c.Peers = slices.DeleteFunc(c.Peers, func(p PeerConfig) bool { return p.Name == c.Host && c.Host != "" })
	if c.Gate.Mode == "" {
		c.Gate.Mode = GateAuto
	}
	if c.Gate.Pin == "" {
		c.Gate.Pin = DefaultPin
	}
	defaultTo(&c.Gate.StrayTime, 10*time.Second)
	defaultTo(&c.Gate.EndLinger, 65*time.Second)
	defaultTo(&c.Gate.HoldPackets, 32<<10)
	defaultTo(&c.Gate.HoldBytes, 64<<20)
	if c.Gate.HoldTotal == 0 {
		c.Gate.HoldTotal = max(256<<20, c.Gate.HoldBytes)
	}
	defaultTo(&c.Migration.Limit, migration.Config{}.WithDefaults().Limit)
	defaultTo(&c.Migration.Concurrency, 64)
	defaultTo(&c.Migration.Incoming, 1024)
	defaultTo(&c.Migration.StateBytes, 64<<20)
	defaultTo(&c.Migration.QueueBytes, 64<<20)
	defaultTo(&c.Migration.BufferBytes, 1<<30)
	if c.Process.CRIU == "" {
		c.Process.CRIU = os.Getenv(criuEnvironment)
	}
	defaultTo(&c.Process.Limit, time.Minute)
	defaultTo(&c.Process.Incoming, 4)
}

func defaultTo[T int | time.Duration](p *T, v T) {
	if *p <= 0 {
		*p = v
	}
}

func (s ServiceConfig) validate(hosts map[string]bool) error {
	if s.Name == "" {
		return errors.New("name: missing")
	}
	if len(s.Addresses) == 0 {
		return errors.New("addresses: missing: give the virtual addresses with their ports")
	}
	for _, a := range s.Addresses {
		if a.Addr().IsUnspecified() || a.Port() == 0 {
			return fmt.Errorf("addresses: %v: a virtual address and a port are needed", a)
		}
	}
	if s.Entry == "" {
		return errors.New("entry: missing: name the host that answers ARP for the address")
	}
	if !hosts[s.Entry] {
		return fmt.Errorf("entry: %q is neither this host nor a peer", s.Entry)
	}
	if len(s.Servers) == 0 {
		return errors.New("servers: missing")
	}
	if len(s.Servers) > gate.MaxServiceNodes {
		return fmt.Errorf("servers: %d of them, at most %d", len(s.Servers), gate.MaxServiceNodes)
	}
	for _, name := range s.Servers {
		if !hosts[name] {
			return fmt.Errorf("servers: %q is neither this host nor a peer", name)
		}
	}
	return nil
}

// pinPath returns the gate's pin directory, empty when nothing is pinned.
func (c *Config) pinPath() string {
	if c.Gate.Pin == pinOff {
		return ""
	}
	return c.Gate.Pin
}

func (c *Config) controlIsPath() bool { return strings.HasPrefix(c.Control, "/") }

// IsEntry reports whether this host is the entry of any service.
func (c *Config) IsEntry() bool {
	for _, s := range c.Services {
		if s.Entry == c.Host {
			return true
		}
	}
	return false
}

// Node returns the number under which the gate knows a host; this one is 0.
func (c *Config) Node(host string) (gate.Node, bool) {
	if host == c.Host {
		return 0, true
	}
	for _, p := range c.Peers {
		if p.Name == host {
			return gate.Node(p.ID), true
		}
	}
	return 0, false
}

// HostOf returns the name of a node.
func (c *Config) HostOf(n gate.Node) string {
	if n == 0 {
		return c.Host
	}
	for _, p := range c.Peers {
		if gate.Node(p.ID) == n {
			return p.Name
		}
	}
	return fmt.Sprintf("node %d", n)
}

// Serves reports whether this host is the entry of the service at an address, and host a server of it.
func (c *Config) Serves(address netip.AddrPort, host string) (entry, server bool) {
	for _, s := range c.Services {
		if s.Entry == c.Host && slices.Contains(s.Addresses, address) {
			return true, slices.Contains(s.Servers, host)
		}
	}
	return false, false
}
