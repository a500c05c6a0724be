// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"go.yaml.in/yaml/v3"

	"github.com/rehome-net/rehome/agent"
	"github.com/rehome-net/rehome/dispatcher"
	netnslab "github.com/rehome-net/rehome/netns-lab"
)

// BenchService is a service of a Bench: at Port of every virtual address. Its Addresses are filled in.
type BenchService struct {
	Port uint16
	dispatcher.ServiceConfig
}

// BenchConfig describes a Bench.
type BenchConfig struct {
	// Command is how to run rehome, as in ClusterConfig.
	Command []string
	// Lab is the lab's name.
	Lab string
	// Services and Pools are what the dispatcher serves. Every service leads to pools of its own: its name and its address say at
	// an agent which service is meant.
	Services []BenchService
	Pools    []dispatcher.PoolConfig
	// Forward is the dispatcher's mode, Gate the agents'; those of their configurations when empty.
	Forward dispatcher.ForwardMode
	Gate    agent.GateMode
	// Root is the directory that the demo servers serve, "/" when empty; see Cluster.StartServer.
	Root string
	// LogLevel is the agents' and the dispatcher's; "info" when empty.
	LogLevel string
}

// Bench is a Farm without servers: a standing lab with agents, and a dispatcher that serves what the caller chooses. Servers run in
// the caller's process, or are started with Launch.
type Bench struct {
	*Cluster
	cfg        BenchConfig
	dispatcher *program

	mu       sync.Mutex
	programs []*program
}

// StartBench builds the lab, with the dispatcher. Close takes all of it down, as a failure does.
func StartBench(ctx context.Context, cfg BenchConfig) (_ *Bench, err error) {
	if cfg.Root == "" {
		cfg.Root = "/"
	}
	topo := DispatchTopology(cfg.Lab)
	for i := range cfg.Services {
		cfg.Services[i].Addresses = at(topo.VIPs, cfg.Services[i].Port)
	}
	cluster, err := StartCluster(ctx, ClusterConfig{
		Topology: topo, Command: cfg.Command, LogLevel: cfg.LogLevel, Root: cfg.Root, NoServers: true, NoAgent: []string{FrontHost},
		Adjust: func(c *agent.Config) { c.Services, c.Gate.Mode = cfg.agentServices(c.Host), cfg.Gate },
	})
	if err != nil {
		return nil, err
	}
	b := &Bench{Cluster: cluster, cfg: cfg}
	if err := b.StartDispatcher(ctx); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return b, nil
}

// agentServices returns the services that the agent of a host knows.
func (c *BenchConfig) agentServices(host string) []agent.ServiceConfig {
	var list []agent.ServiceConfig
	for _, s := range c.Services {
		pools := []string{s.Default}
		for _, r := range s.Routes {
			pools = append(pools, r.Pool)
		}
		for _, p := range c.Pools {
			if !slices.Contains(pools, p.Name) {
				continue
			}
			service := agent.ServiceConfig{Name: p.Service, Addresses: s.Addresses, Entry: FrontHost}
			if service.Name == "" {
				service.Name = p.Name
			}
			for _, b := range p.Backends {
				service.Servers = append(service.Servers, b.Host)
			}
			if slices.Contains(service.Servers, host) {
				list = append(list, service)
			}
		}
	}
	return list
}

// StartDispatcher starts the dispatcher and returns when it has reached the agents of all running backends.
func (b *Bench) StartDispatcher(ctx context.Context) error {
	if err := b.writeDispatcher(); err != nil {
		return err
	}
	level := b.cfg.LogLevel
	if level == "" {
		level = "info"
	}
	p, err := b.launchProgram(ctx, FrontHost, "dispatcher", append(slices.Clone(b.cfg.Command),
		"dispatcher", "--config", filepath.Join(b.dir, FrontHost, "dispatcher.yaml"), "--log-level", level)...)
	if err != nil {
		return err
	}
	b.dispatcher = p
	return b.await(ctx, p.daemon, func(ctx context.Context) error {
		m, err := b.Metrics(ctx)
		if err != nil {
			return err
		}
		for host, d := range b.agents {
			up := fmt.Sprintf("backend_up{backend=%s}", host)
			if value, ok := m[up]; ok && value == 0 && !ended(d) {
				return fmt.Errorf("the agent of %s has not been reached", host)
			}
		}
		return nil
	})
}

// KillDispatcher ends the dispatcher as a crash would.
func (b *Bench) KillDispatcher() error { return b.dispatcher.kill() }

func ended(d *daemon) bool {
	select {
	case <-d.done:
		return true
	default:
		return false
	}
}

func (b *Bench) writeDispatcher() error {
	own, err := agent.LoadConfig(b.configPath(FrontHost))
	if err != nil {
		return err
	}
	lab := b.Lab.Topology().Name
	cfg := dispatcher.Config{
		Host: FrontHost, Interfaces: []string{netnslab.Interface}, Listen: own.Listen, Control: ControlSocket(lab, FrontHost),
		Pin: filepath.Join(pinDir(lab), "dispatcher"), Metrics: frontMetrics, Pools: b.cfg.Pools, Forward: dispatcher.ForwardConfig{Mode: b.cfg.Forward},
		TLS: own.TLS,
	}
	for _, s := range b.cfg.Services {
		cfg.Services = append(cfg.Services, s.ServiceConfig)
	}
	for _, p := range own.Peers {
		if slices.Contains(b.Servers(), p.Name) {
			cfg.Peers = append(cfg.Peers, p)
		}
	}
	raw, err := yaml.Marshal(cfg)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(b.dir, FrontHost, "dispatcher.yaml"), raw, 0o644)
}

// Launch starts a server on a host. The function that it returns ends it as a crash would.
func (b *Bench) Launch(ctx context.Context, host, name string, command ...string) (kill func() error, err error) {
	p, err := b.launchProgram(ctx, host, name, command...)
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.programs = append(b.programs, p)
	return p.kill, nil
}

// Close ends the servers and the dispatcher, and takes the lab down.
func (b *Bench) Close() error {
	b.mu.Lock()
	programs := b.programs
	b.programs = nil
	b.mu.Unlock()
	var errs []error
	for _, p := range programs {
		errs = append(errs, p.kill())
	}
	if b.dispatcher != nil {
		errs = append(errs, b.dispatcher.stop())
	}
	return errors.Join(append(errs, b.Cluster.Close())...)
}

// Host returns a host of the lab by one of this package's names.
func (b *Bench) Host(name string) *netnslab.Host {
	h, err := b.Lab.Host(name)
	if err != nil {
		return nil
	}
	return h
}

// Target returns where a client reaches the service at a port.
func (b *Bench) Target(port uint16, v6 bool) netip.AddrPort {
	return netip.AddrPortFrom(family(b.Lab.Topology().VIPs, v6), port)
}

// Path returns where files of a host may be kept for as long as the bench stands.
func (b *Bench) Path(host, name string) string { return filepath.Join(b.dir, host, name) }

// Metrics returns what the dispatcher counts: "backend_up{backend=b1}" and so on, without the prefix that all have. Histograms are left out.
func (b *Bench) Metrics(ctx context.Context) (map[string]float64, error) {
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
			return b.Host(FrontHost).Dial(ctx, "tcp", addr)
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+frontMetrics+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close() //nolint:errcheck // read to its end
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("metrics: %w", err)
	}
	values := make(map[string]float64)
	for name, f := range families {
		for _, m := range f.GetMetric() {
			if m.GetHistogram() == nil {
				values[metricName(name, m)] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return values, nil
}

func metricName(family string, m *dto.Metric) string {
	name := strings.TrimPrefix(family, "rehome_dispatcher_")
	var labels []string
	for _, l := range m.GetLabel() {
		labels = append(labels, l.GetName()+"="+l.GetValue())
	}
	if len(labels) == 0 {
		return name
	}
	return name + "{" + strings.Join(labels, ",") + "}"
}

// Kept is what a connection can leave behind.
type Kept struct {
	// Flows and Held count what the host's pinned flow tables have: all entries, and those whose packets are held.
	Flows, Held int
	// Descriptors are the open ones of its daemon, the dispatcher or the agent.
	Descriptors int
}

// Keeps returns what a host keeps now.
func (b *Bench) Keeps(host string) (Kept, error) {
	pid, pin := 0, host
	if host == FrontHost {
		pid, pin = b.dispatcher.cmd.Process.Pid, "dispatcher"
	} else {
		pid = b.agents[host].cmd.Process.Pid
	}
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		return Kept{}, err
	}
	k := Kept{Descriptors: len(files)}
	k.Flows, k.Held, err = pinnedFlows(filepath.Join(pinDir(b.Lab.Topology().Name), pin))
	return k, err
}
