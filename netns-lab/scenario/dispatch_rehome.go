// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"

	"go.yaml.in/yaml/v3"
	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/agent"
	"github.com/rehome-net/rehome/dispatcher"
	netnslab "github.com/rehome-net/rehome/netns-lab"
	"github.com/rehome-net/rehome/netns-lab/demo"
)

// deliveries says how each service of a Farm gets its connections, and under which name its agent knows it.
func deliveries() map[Service]dispatcher.PoolConfig {
	pool := func(s Service, d dispatcher.Delivery, service string) dispatcher.PoolConfig {
		return dispatcher.PoolConfig{
			Name: string(s), Delivery: d, Service: service, Backends: []dispatcher.BackendConfig{{Host: s.Host()}},
		}
	}
	return map[Service]dispatcher.PoolConfig{
		Files:  pool(Files, dispatcher.DeliveryUnmodified, "nginx"),
		Linked: pool(Linked, dispatcher.DeliveryLinked, demo.FilesService),
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
			return s.Name != demo.EchoService || c.Host != LinkedHost // the demo server registers it, too
		})
		for _, s := range services() {
			if s.Host() != c.Host {
				continue
			}
			c.Services = append(c.Services, agent.ServiceConfig{
				Name: deliveries()[s].Service, Addresses: at(vips, s.Port()), Entry: FrontHost, Servers: []string{s.Host()},
			})
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

type rehome struct {
	running *program
}

func (r *rehome) Name() string       { return "rehome" }
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
		Control: ControlSocket(topo.Name, FrontHost), Pin: pinDir(topo.Name) + "/" + r.Name(),
		Metrics: "127.0.0.1:9101",
		TLS:     dispatcher.TLSConfig{Certificate: own.TLS.Certificate, Key: own.TLS.Key, Authority: own.TLS.Authority},
	}
	for _, p := range own.Peers {
		if slices.Contains(f.Servers(), p.Name) {
			cfg.Peers = append(cfg.Peers, dispatcher.PeerConfig{Name: p.Name, Address: p.Address, MAC: p.MAC, ID: p.ID})
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
