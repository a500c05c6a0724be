// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"context"
	"net/netip"
	"os"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/rehome-net/rehome/agent"
	"github.com/rehome-net/rehome/dispatcher"
	netnslab "github.com/rehome-net/rehome/netns-lab"
)

// mediaServices are the services of Media.
func mediaServices() []struct {
	name string
	port uint16
	mode dispatcher.Mode
} {
	return []struct {
		name string
		port uint16
		mode dispatcher.Mode
	}{
		{"rtsp", RTSPPort, dispatcher.ModeRTSP},
		{"sip", SIPPort, dispatcher.ModeSIP},
		{"ftp", FTPPort, dispatcher.ModeFTP},
		{"dns", DNSPort, dispatcher.ModeUDP},
	}
}

// StartDispatcher starts `rehome dispatcher` on the front, in front of all servers.
func (m *Media) StartDispatcher(ctx context.Context) error {
	own, err := agent.LoadConfig(m.configPath(FrontHost))
	if err != nil {
		return err
	}
	topo := m.Lab.Topology()
	cfg := dispatcher.Config{
		Gateways: []string{GatewayHost},
		Host:     FrontHost, Interfaces: []string{netnslab.Interface}, Listen: own.Listen,
		Control: ControlSocket(topo.Name, FrontHost), Pin: pinDir(topo.Name) + "/dispatcher", Metrics: frontMetrics,
		TLS: own.TLS,
	}
	for _, p := range own.Peers {
		if slices.Contains(m.Servers(), p.Name) {
			cfg.Peers = append(cfg.Peers, p)
		}
	}
	for _, s := range mediaServices() {
		pool := dispatcher.PoolConfig{Name: s.name, Delivery: dispatcher.DeliveryUnmodified, Service: s.name}
		for _, host := range m.Servers() {
			pool.Backends = append(pool.Backends, dispatcher.BackendConfig{Host: host})
		}
		cfg.Pools = append(cfg.Pools, pool)
		service := dispatcher.ServiceConfig{
			Name: s.name, Mode: s.mode, Addresses: []netip.AddrPort{netip.AddrPortFrom(m.VIP(), s.port)}, Default: s.name,
		}
		if s.mode == dispatcher.ModeUDP {
			service.Sticky = dispatcher.StickyNone // all clients of the lab have one address
		}
		cfg.Services = append(cfg.Services, service)
	}
	if m.cfg.Dispatcher != nil {
		m.cfg.Dispatcher(&cfg)
	}
	raw, err := yaml.Marshal(cfg)
	if err != nil {
		return err
	}
	path := m.path(FrontHost, "dispatcher.yaml")
	if err := os.WriteFile(path, raw, 0o644); err != nil {
		return err
	}
	level := m.cfg.LogLevel
	if level == "" {
		level = "info"
	}
	p, err := m.launch(ctx, FrontHost, "dispatcher", append(slices.Clone(m.cfg.Command), "dispatcher", "--config", path, "--log-level", level)...)
	if err != nil {
		return err
	}
	return m.await(ctx, p.daemon, func(ctx context.Context) error {
		_, err := scrape(ctx, m.host(FrontHost), frontMetrics)
		return err
	})
}

// Connections returns how many connections a server's kernel has at the address of a service, as its agent tells.
func (m *Media) Connections(ctx context.Context, server, service string) (n int, err error) {
	st, err := m.Status(ctx, server)
	for _, s := range st.GetServices() {
		if s.GetName() == service {
			n += int(s.GetConnections())
		}
	}
	return n, err
}

// Sessions returns how many sessions a server has, as the dispatcher counts.
func (m *Media) Sessions(ctx context.Context, server string) (float64, error) {
	families, err := scrape(ctx, m.host(FrontHost), frontMetrics)
	return perBackend(families["rehome_dispatcher_backend_active"])[server], err
}

// AwaitDrained waits until the dispatcher gives a server nothing.
func (m *Media) AwaitDrained(ctx context.Context, server string) error {
	return holdsWithin(ctx, startTimeout, func() (bool, error) {
		families, err := scrape(ctx, m.host(FrontHost), frontMetrics)
		return perBackend(families["rehome_dispatcher_backend_drained"])[server] == 1, err
	})
}

// FrontCounters returns the dispatcher's counters, by name and labels, without the name that all begin with.
func (m *Media) FrontCounters(ctx context.Context) (map[string]float64, error) {
	families, err := scrape(ctx, m.host(FrontHost), frontMetrics)
	values := make(map[string]float64)
	for name, family := range families {
		for _, v := range family.GetMetric() {
			key := strings.TrimPrefix(name, "rehome_dispatcher_")
			for _, l := range v.GetLabel() {
				key += " " + l.GetValue()
			}
			values[key] = v.GetCounter().GetValue()
		}
	}
	return values, err
}
