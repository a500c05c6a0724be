// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"os"
	"slices"

	dto "github.com/prometheus/client_model/go"
	"go.yaml.in/yaml/v3"
	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/agent"
	"github.com/rehome-net/rehome/agent/api"
	"github.com/rehome-net/rehome/dispatcher"
	netnslab "github.com/rehome-net/rehome/netns-lab"
	"github.com/rehome-net/rehome/netns-lab/demo"
)

// deliveries says how each service of a Farm gets its connections, and under which name its agent knows it.
func deliveries() map[Service]dispatcher.PoolConfig {
	pool := func(s Service, d dispatcher.Delivery, service string, more ...string) dispatcher.PoolConfig {
		p := dispatcher.PoolConfig{Name: string(s), Delivery: d, Service: service}
		for _, host := range append([]string{s.Host()}, more...) {
			p.Backends = append(p.Backends, dispatcher.BackendConfig{Host: host})
		}
		return p
	}
	return map[Service]dispatcher.PoolConfig{
		Files:  pool(Files, dispatcher.DeliveryUnmodified, "nginx"),
		Linked: pool(Linked, dispatcher.DeliveryLinked, demo.FilesService, MixedHost),
		Shop:   pool(Shop, dispatcher.DeliveryUnmodified, "shop"),
		Vault:  pool(Vault, dispatcher.DeliveryUnmodified, "vault"),
		Clear:  pool(Clear, dispatcher.DeliveryUnmodified, "clear"),
		Store:  pool(Store, dispatcher.DeliveryUnmodified, "store"),
	}
}

// DispatchedAgents is FarmConfig.Adjust for a farm behind Rehome: the agents know its services, with the front as their entry.
func DispatchedAgents(vips []netip.Addr) func(*agent.Config) {
	return func(c *agent.Config) {
		c.Services = slices.DeleteFunc(c.Services, func(s agent.ServiceConfig) bool {
			return s.Name != demo.EchoService // the demo server registers it, too
		})
		for _, s := range services() {
			service := agent.ServiceConfig{Name: deliveries()[s].Service, Addresses: at(vips, s.Port()), Entry: FrontHost}
			for _, b := range deliveries()[s].Backends {
				service.Servers = append(service.Servers, b.Host)
			}
			if slices.Contains(service.Servers, c.Host) {
				c.Services = append(c.Services, service)
			}
		}
	}
}

func at(vips []netip.Addr, port uint16) []netip.AddrPort {
	var all []netip.AddrPort
	for _, a := range vips {
		all = append(all, netip.AddrPortFrom(a, port))
	}
	return all
}

// Rehome is the project's own dispatcher as a Front. Its farm needs agents (FarmConfig.Agents, DispatchedAgents).
func Rehome() Front { return &rehome{} }

// RehomeSocketless is Rehome with services whose connections get no socket at the front.
func RehomeSocketless() Front { return &rehome{socketless: true} }

// frontMetrics is where the dispatcher of a farm shows its metrics.
const frontMetrics = "127.0.0.1:9101"

// RehomeNFT is Rehome whose forwarder is nftables.
func RehomeNFT() Front { return &rehome{forward: dispatcher.ForwardNFT} }

// RehomeAdjusted is Rehome with a configuration that a caller has changed before it is written.
func RehomeAdjusted(adjust func(*dispatcher.Config)) Front { return &rehome{adjust: adjust} }

type rehome struct {
	socketless bool
	adjust     func(*dispatcher.Config) // may be nil
	forward    dispatcher.ForwardMode
	running    *program
	// handed is the socket of a server on NginxHost that takes descriptors; empty: there is none.
	handed string
}

// giveTo implements descriptorFront.
func (r *rehome) giveTo(socket string) { r.handed = socket }

func (r *rehome) Name() string {
	if r.socketless {
		return "rehome-socketless"
	}
	if r.forward != "" {
		return "rehome-" + string(r.forward)
	}
	return "rehome"
}
func (r *rehome) Programs() []string { return nil }

func (r *rehome) Start(ctx context.Context, f *Farm) error {
	if err := r.write(f, nil); err != nil {
		return err
	}
	level := f.cfg.LogLevel
	if level == "" {
		level = "info"
	}
	command := append(slices.Clone(f.cfg.Command), "dispatcher", "--config", f.path(FrontHost, "dispatcher.yaml"), "--log-level", level)
	var err error
	if r.running, err = f.launch(ctx, FrontHost, r.Name(), command...); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for _, s := range services() {
		err := f.await(ctx, r.running.daemon, func(ctx context.Context) error { return f.Ask(ctx, r, s) })
		if err != nil {
			return errors.Join(fmt.Errorf("%s: %w", s, err), r.Stop())
		}
	}
	return nil
}

// write writes the dispatcher's configuration, with further routes by host name.
func (r *rehome) write(f *Farm, routes []Route) error {
	own, err := agent.LoadConfig(f.configPath(FrontHost))
	if err != nil {
		return err
	}
	topo := f.Lab.Topology()
	cfg := dispatcher.Config{
		Host: FrontHost, Interfaces: []string{netnslab.Interface}, Listen: own.Listen,
		Control: ControlSocket(topo.Name, FrontHost), Pin: pinDir(topo.Name) + "/rehome",
		Metrics: frontMetrics, Forward: dispatcher.ForwardConfig{Mode: r.forward},
		TLS: own.TLS,
	}
	for _, p := range own.Peers {
		if slices.Contains(f.Servers(), p.Name) {
			cfg.Peers = append(cfg.Peers, p)
		}
	}
	pools := deliveries()
	for _, s := range services() {
		cfg.Pools = append(cfg.Pools, pools[s])
	}
	web := dispatcher.ServiceConfig{
		Name: "web", Mode: dispatcher.ModeHTTP, Addresses: at(topo.VIPs, Files.Port()), Default: string(Files),
		Routes: []dispatcher.RouteConfig{{Path: LinkedPath, Pool: string(Linked)}},
	}
	if r.handed != "" {
		cfg.Pools = append(cfg.Pools, dispatcher.PoolConfig{
			Name: "handed", Delivery: dispatcher.DeliveryFD, Service: pools[Files].Service,
			Backends: []dispatcher.BackendConfig{{Host: NginxHost, Socket: r.handed}},
		})
		web.Routes = append(web.Routes, dispatcher.RouteConfig{Path: DescriptorPath, Pool: "handed"})
	}
	for _, route := range routes {
		web.Routes = append(web.Routes, dispatcher.RouteConfig{Host: route.Host, Pool: string(route.Service)})
	}
	cfg.Services = []dispatcher.ServiceConfig{
		web,
		{
			Name: "secure", Mode: dispatcher.ModeTLS, Addresses: at(topo.VIPs, Shop.Port()),
			Routes: []dispatcher.RouteConfig{{SNI: ShopName, Pool: string(Shop)}, {SNI: VaultName, Pool: string(Vault)}},
		},
		{Name: "clear", Mode: dispatcher.ModeH2, Addresses: at(topo.VIPs, Clear.Port()), Default: string(Clear)},
		{Name: "store", Mode: dispatcher.ModeTCP, Addresses: at(topo.VIPs, Store.Port()), Default: string(Store)},
	}
	for i := range cfg.Services {
		cfg.Services[i].Socketless = r.socketless
	}
	if r.adjust != nil {
		r.adjust(&cfg)
	}
	raw, err := yaml.Marshal(cfg)
	if err != nil {
		return err
	}
	return os.WriteFile(f.path(FrontHost, "dispatcher.yaml"), raw, 0o644)
}

func (r *rehome) Stop() error {
	if r.running == nil {
		return nil
	}
	defer func() { r.running = nil }()
	return r.running.stop()
}

func (r *rehome) Kill() error {
	if r.running == nil {
		return errors.New("the dispatcher has not been started")
	}
	defer func() { r.running = nil }()
	return r.running.kill()
}

func (r *rehome) Processes() ([]int, error) {
	if r.running == nil {
		return nil, errors.New("the dispatcher has not been started")
	}
	return r.running.processes()
}

// Reload rewrites the configuration and sends SIGHUP.
func (r *rehome) Reload(_ context.Context, f *Farm, routes []Route) error {
	if r.running == nil {
		return errors.New("the dispatcher has not been started")
	}
	if err := r.write(f, routes); err != nil {
		return err
	}
	return r.running.cmd.Process.Signal(unix.SIGHUP)
}

func (r *rehome) Target(f *Farm, s Service, v6 bool) (netip.AddrPort, error) {
	return netip.AddrPortFrom(family(f.Lab.Topology().VIPs, v6), s.Port()), nil
}

// Drain empties a backend: its connections move to the others of their service, and new ones do not come.
func (r *rehome) Drain(ctx context.Context, f *Farm, host string) error {
	moved, sum, err := f.MoveAll(ctx, host, &api.MoveRequest{Drain: true})
	if err != nil {
		return err
	}
	if n := sum.GetMoved(); int(n) != len(moved) {
		return fmt.Errorf("%d of %d connections of %s have moved: %v", n, len(moved), host, moved)
	}
	return nil
}

// Undrain puts it back.
func (r *rehome) Undrain(ctx context.Context, f *Farm, host string) error {
	client, err := f.Cluster.Client(host)
	if err != nil {
		return err
	}
	_, err = client.Undrain(ctx, &api.UndrainRequest{})
	return err
}

// Handoffs reads the dispatcher's metrics.
func (r *rehome) Handoffs(ctx context.Context, f *Farm) (Handoffs, error) {
	families, err := scrape(ctx, f.host(FrontHost), frontMetrics)
	if err != nil {
		return Handoffs{}, err
	}
	h := Handoffs{Delivered: make(map[string]int64)}
	for _, m := range families["rehome_dispatcher_handoffs_total"].GetMetric() {
		h.Delivered[m.GetLabel()[0].GetValue()] = int64(m.GetCounter().GetValue())
	}
	for _, m := range families["rehome_dispatcher_relayed_bytes_total"].GetMetric() {
		h.BytesRelayed = int64(m.GetCounter().GetValue())
	}
	h.Micros = histogramQuantiles(families["rehome_dispatcher_handoff_seconds"].GetMetric())
	h.Deliveries = []string{string(dispatcher.DeliveryLinked), string(dispatcher.DeliveryUnmodified)}
	if r.handed != "" {
		h.Deliveries = append(h.Deliveries, string(dispatcher.DeliveryFD))
	}
	return h, nil
}

// histogramQuantiles reads quantiles off histograms with the same buckets, in microseconds: the upper bounds of the buckets they
// lie in.
func histogramQuantiles(metrics []*dto.Metric) Quantiles {
	sums := make(map[float64]uint64)
	var total uint64
	for _, m := range metrics {
		total += m.GetHistogram().GetSampleCount()
		for _, b := range m.GetHistogram().GetBucket() {
			sums[b.GetUpperBound()] += b.GetCumulativeCount()
		}
	}
	bounds := slices.Sorted(maps.Keys(sums))
	at := func(q float64) int64 {
		for _, b := range bounds {
			if float64(sums[b]) >= q*float64(total) && !math.IsInf(b, 1) {
				return int64(b * 1e6)
			}
		}
		return 0
	}
	return Quantiles{Median: at(0.5), P99: at(0.99), Max: at(1)}
}
