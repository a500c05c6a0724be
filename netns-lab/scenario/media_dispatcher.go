// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"context"
	"net/netip"
	"os"
	"slices"

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
