// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	dto "github.com/prometheus/client_model/go"
	"go.yaml.in/yaml/v3"

	"github.com/rehome-net/rehome/agent"
	"github.com/rehome-net/rehome/dispatcher"
	"github.com/rehome-net/rehome/handoff/vitals"
	netnslab "github.com/rehome-net/rehome/netns-lab"
)

const (
	// reportPort is where the dispatcher of a managedLab hears reports.
	reportPort = 7072
	// Intervals of its heartbeats and load vectors, and how many heartbeats may be missing.
	heartbeatInterval = 10 * time.Millisecond
	heartbeatMisses   = 3
	loadInterval      = 50 * time.Millisecond
)

// managedConfig describes a managedLab.
type managedConfig struct {
	Command  []string
	Lab      string
	LogLevel string
	// Service is the linked one that all servers have, and Port its port.
	Service string
	Port    uint16
	// Calm has heartbeats come at calmInterval.
	Calm bool
	// Others are further services that agents know, with their ports.
	Others map[string]uint16
}

// managedLab is a lab of which the servers' agents report to the front, where a dispatcher hears them. The servers are started by somebody else.
type managedLab struct {
	*Cluster
	cfg   managedConfig
	keys  string // directory of the key file
	front *program
}

func startManaged(ctx context.Context, cfg managedConfig) (_ *managedLab, err error) {
	m := &managedLab{cfg: cfg}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.close())
		}
	}()
	if m.keys, err = os.MkdirTemp("", "rh-keys-"); err != nil {
		return nil, err
	}
	if err := writeKey(m.keyFile()); err != nil {
		return nil, err
	}
	topo := DispatchTopology(cfg.Lab)
	m.Cluster, err = StartCluster(ctx, ClusterConfig{
		Topology: topo, Command: cfg.Command, LogLevel: cfg.LogLevel, NoServers: true, NoAgent: []string{FrontHost}, Adjust: m.agentFor(topo),
	})
	return m, err
}

func (m *managedLab) keyFile() string { return filepath.Join(m.keys, "keys") }

// writeKey writes a key file with one key of any host.
func writeKey(path string) error {
	secret := make([]byte, 32)
	if _, err := rand.Read(secret); err != nil {
		return err
	}
	return os.WriteFile(path, []byte("1 * "+hex.EncodeToString(secret)+"\n"), 0o600)
}

// agentFor returns what changes an agent's configuration: it has the one service, and the others, and reports.
func (m *managedLab) agentFor(topo netnslab.Topology) func(*agent.Config) {
	var servers []string
	for _, h := range topo.Hosts {
		if h.Role == netnslab.RoleServer {
			servers = append(servers, h.Name)
		}
	}
	service := func(name string, port uint16) agent.ServiceConfig {
		return agent.ServiceConfig{Name: name, Addresses: at(topo.VIPs, port), Entry: FrontHost, Servers: servers}
	}
	services := []agent.ServiceConfig{service(m.cfg.Service, m.cfg.Port)}
	for _, name := range slices.Sorted(maps.Keys(m.cfg.Others)) {
		services = append(services, service(name, m.cfg.Others[name]))
	}
	report := reportsOf(topo, m.keyFile())
	return func(c *agent.Config) {
		c.Services = services
		report(c)
		if m.cfg.Calm {
			c.Report.Interval = calmInterval
		}
	}
}

// reportsOf returns what has an agent report to the entry's host, under the number that peers know its own by.
func reportsOf(topo netnslab.Topology, keys string) func(*agent.Config) {
	entry := topo.Hosts[slices.IndexFunc(topo.Hosts, func(h netnslab.HostSpec) bool { return h.Role == netnslab.RoleEntry })]
	numbers := map[string]uint32{}
	for _, h := range topo.Hosts {
		if h.Role != netnslab.RoleClient {
			numbers[h.Name] = uint32(len(numbers)) + 1 // as Cluster numbers peers
		}
	}
	return func(c *agent.Config) {
		c.Report = agent.ReportConfig{
			Host: numbers[c.Host], Dispatchers: []netip.AddrPort{netip.AddrPortFrom(entry.Addr4(), reportPort)}, Keys: keys,
			Interval: heartbeatInterval, LoadInterval: loadInterval,
		}
	}
}

// close ends the dispatcher and takes the lab down.
func (m *managedLab) close() error {
	errs := []error{m.stopDispatcher()}
	if m.Cluster != nil {
		errs = append(errs, m.Close())
	}
	if m.keys != "" {
		errs = append(errs, os.RemoveAll(m.keys))
	}
	return errors.Join(errs...)
}

// target is where clients find the service.
func (m *managedLab) target() netip.AddrPort {
	return netip.AddrPortFrom(m.Lab.Topology().VIP4(), m.cfg.Port)
}

// dial returns a dialer from the client to an address.
func (m *managedLab) dial(to netip.AddrPort) dialer {
	return func(ctx context.Context) (net.Conn, error) {
		client, err := m.Lab.Host(ClientHost)
		if err != nil {
			return nil, err
		}
		return client.Dial(ctx, "tcp", to.String())
	}
}

// reports returns how the dispatcher hears of the servers.
func (m *managedLab) reports() (dispatcher.ReportsConfig, error) {
	front, err := m.Lab.Host(FrontHost)
	if err != nil {
		return dispatcher.ReportsConfig{}, err
	}
	c := reportsHeard(front, m.keyFile())
	if m.cfg.Calm {
		c.Interval = calmInterval
	}
	return c, nil
}

// reportsHeard returns how a dispatcher on the host front hears reports. All hosts of a lab share the machine's processors, memory and disks: what
// the applications say is all that tells one from another.
func reportsHeard(front *netnslab.Host, keys string) dispatcher.ReportsConfig {
	weights := map[string]float64{}
	for part := range vitals.Parts {
		weights[part.String()] = 0
	}
	weights[vitals.Application.String()] = 1
	return dispatcher.ReportsConfig{
		Listen: netip.AddrPortFrom(front.Addr4(), reportPort).String(), Keys: keys, Interval: heartbeatInterval, Misses: heartbeatMisses,
		LoadInterval: loadInterval, Weights: weights,
	}
}

// startDispatcher starts `rehome dispatcher` on the front with a configuration that adjust completes, and returns when it serves all servers.
func (m *managedLab) startDispatcher(ctx context.Context, mode dispatcher.Mode, adjust func(*dispatcher.Config)) error {
	cfg, err := m.dispatcherConfig(mode)
	if err != nil {
		return err
	}
	adjust(cfg)
	raw, err := yaml.Marshal(cfg)
	if err != nil {
		return err
	}
	path := filepath.Join(m.dir, FrontHost, "dispatcher.yaml")
	if err := os.WriteFile(path, raw, 0o644); err != nil {
		return err
	}
	level := m.cfg.LogLevel
	if level == "" {
		level = "info"
	}
	m.front, err = m.launchProgram(ctx, FrontHost, "dispatcher", append(slices.Clone(m.cfg.Command), "dispatcher", "--config", path, "--log-level", level)...)
	if err != nil {
		return err
	}
	return m.await(ctx, m.front.daemon, m.serves)
}

// serves returns nil when the dispatcher can reach every server.
func (m *managedLab) serves(ctx context.Context) error {
	values, err := m.frontGauge(ctx, "rehome_dispatcher_backend_up")
	if err != nil {
		return err
	}
	for _, name := range m.Servers() {
		if values[name] != 1 {
			return fmt.Errorf("the dispatcher cannot reach %s yet", name)
		}
	}
	return nil
}

// frontGauge reads a metric of the dispatcher that is told for each backend.
func (m *managedLab) frontGauge(ctx context.Context, metric string) (map[string]float64, error) {
	families, err := m.frontMetrics(ctx)
	return perBackend(families[metric]), err
}

// frontCounter reads one that is told once.
func (m *managedLab) frontCounter(ctx context.Context, metric string) (float64, error) {
	families, err := m.frontMetrics(ctx)
	if err != nil {
		return 0, err
	}
	for _, v := range families[metric].GetMetric() {
		return v.GetCounter().GetValue(), nil
	}
	return 0, fmt.Errorf("the dispatcher has no metric %s", metric)
}

func (m *managedLab) frontMetrics(ctx context.Context) (map[string]*dto.MetricFamily, error) {
	front, err := m.Lab.Host(FrontHost)
	if err != nil {
		return nil, err
	}
	return scrape(ctx, front, frontMetrics)
}

// perBackend returns the values of a metric that is told for each backend.
func perBackend(family *dto.MetricFamily) map[string]float64 {
	values := map[string]float64{}
	for _, v := range family.GetMetric() {
		for _, l := range v.GetLabel() {
			if l.GetName() == "backend" {
				values[l.GetValue()] = v.GetGauge().GetValue()
			}
		}
	}
	return values
}

func (m *managedLab) dispatcherConfig(mode dispatcher.Mode) (*dispatcher.Config, error) {
	own, err := agent.LoadConfig(m.configPath(FrontHost))
	if err != nil {
		return nil, err
	}
	topo := m.Lab.Topology()
	cfg := &dispatcher.Config{
		Host: FrontHost, Interfaces: []string{netnslab.Interface}, Listen: own.Listen,
		Control: ControlSocket(topo.Name, FrontHost), Pin: pinDir(topo.Name) + "/dispatcher", Metrics: frontMetrics,
		TLS:      own.TLS,
		Services: []dispatcher.ServiceConfig{{Name: m.cfg.Service, Mode: mode, Addresses: at(topo.VIPs, m.cfg.Port), Default: m.cfg.Service}},
	}
	pool := dispatcher.PoolConfig{Name: m.cfg.Service, Delivery: dispatcher.DeliveryLinked, Service: m.cfg.Service}
	for _, p := range own.Peers {
		if slices.Contains(m.Servers(), p.Name) {
			cfg.Peers = append(cfg.Peers, p)
			pool.Backends = append(pool.Backends, dispatcher.BackendConfig{Host: p.Name})
		}
	}
	cfg.Pools = []dispatcher.PoolConfig{pool}
	return cfg, nil
}

// stopDispatcher ends the dispatcher in order.
func (m *managedLab) stopDispatcher() error {
	if m.front == nil {
		return nil
	}
	defer func() { m.front = nil }()
	return m.front.stop()
}
