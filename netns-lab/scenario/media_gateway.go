// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	dto "github.com/prometheus/client_model/go"
	"go.yaml.in/yaml/v3"
	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/agent"
	"github.com/rehome-net/rehome/dispatcher/gateway"
	netnslab "github.com/rehome-net/rehome/netns-lab"

	"github.com/rehome-net/rehome/handoff/peer"
)

// gatewayMetrics is where the gateway of Media shows its metrics.
const gatewayMetrics = "127.0.0.1:9102"

// StartGateway starts `rehome gateway` on the router, which reads all signalling of Media and reports to the front.
func (m *Media) StartGateway(ctx context.Context) (*MediaGateway, error) {
	own, err := agent.LoadConfig(m.configPath(FrontHost))
	if err != nil {
		return nil, err
	}
	cfg := gateway.Config{
		Host: GatewayHost, Interfaces: []string{netnslab.Interface}, Metrics: gatewayMetrics, Hold: m.cfg.Hold,
		Dispatcher: gateway.HostConfig{Name: FrontHost, Address: own.Listen},
	}
	for _, s := range []gateway.ServiceConfig{
		{Name: "rtsp", Mode: gateway.ModeRTSP, Addresses: []netip.AddrPort{netip.AddrPortFrom(m.VIP(), RTSPPort)}},
		{Name: "sip", Mode: gateway.ModeSIP, Addresses: []netip.AddrPort{netip.AddrPortFrom(m.VIP(), SIPPort)}},
		{Name: "ftp", Mode: gateway.ModeFTP, Addresses: []netip.AddrPort{netip.AddrPortFrom(m.VIP(), FTPPort)}},
	} {
		s.Servers = m.Servers()
		cfg.Services = append(cfg.Services, s)
	}
	for _, name := range m.Servers() {
		cfg.Servers = append(cfg.Servers, gateway.HostConfig{Name: name, Address: m.host(name).Addr4().String()})
	}
	if cfg.TLS, err = m.ca.issue(GatewayHost, gatewaySerial); err != nil {
		return nil, err
	}
	raw, err := yaml.Marshal(cfg)
	if err != nil {
		return nil, err
	}
	path := m.path(GatewayHost, "gateway.yaml")
	if err := os.WriteFile(path, raw, 0o644); err != nil {
		return nil, err
	}
	level := m.cfg.LogLevel
	if level == "" {
		level = "info"
	}
	p, err := m.launch(ctx, GatewayHost, "gateway", append(slices.Clone(m.cfg.Command), "gateway", "--config", path, "--log-level", level)...)
	if err != nil {
		return nil, err
	}
	g := &MediaGateway{m: m, running: p}
	return g, m.await(ctx, p.daemon, func(ctx context.Context) error {
		up, err := g.Counter(ctx, "rehome_gateway_dispatcher_up")
		if err == nil && up == 0 {
			err = errors.New("it has no connection to the dispatcher yet")
		}
		if err != nil {
			return err
		}
		unknown, err := g.Counter(ctx, "rehome_gateway_unknown_hosts")
		if err == nil && unknown > 0 {
			err = fmt.Errorf("it does not know %v of its hosts yet", unknown)
		}
		return err
	})
}

// gatewaySerial is the number of the gateway's certificate, beyond those of the hosts.
const gatewaySerial = 1000

// MediaGateway is a running `rehome gateway`.
type MediaGateway struct {
	m       *Media
	running *program
}

// Kill ends the gateway as a crash would, Stop in order.
func (g *MediaGateway) Kill() error { return g.running.kill() }

// Stop is described at Kill.
func (g *MediaGateway) Stop() error { return g.running.stop() }

// Hang stops the gateway's process where it is, until the function that it returns is called.
func (g *MediaGateway) Hang() (wake func() error, err error) {
	p := g.running.cmd.Process
	return func() error { return p.Signal(unix.SIGCONT) }, p.Signal(unix.SIGSTOP)
}

// Counter returns one of the gateway's metrics.
func (g *MediaGateway) Counter(ctx context.Context, name string) (float64, error) {
	families, err := scrape(ctx, g.m.host(GatewayHost), gatewayMetrics)
	if err != nil {
		return 0, err
	}
	f := families[name]
	if f == nil || len(f.GetMetric()) == 0 {
		return 0, fmt.Errorf("the gateway has no metric %s", name)
	}
	metric := f.GetMetric()[0]
	if f.GetType() == dto.MetricType_GAUGE {
		return metric.GetGauge().GetValue(), nil
	}
	return metric.GetCounter().GetValue(), nil
}

// Listener stands in the dispatcher's place at the front: it hears what the gateway reports, and confirms it.
type Listener struct {
	*gateway.Server

	mu   sync.Mutex
	said []Heard
}

// Heard is what a server has said, and when it was reported.
type Heard struct {
	gateway.Said
	At time.Time
}

// Said returns what was reported so far.
func (l *Listener) Said() []Heard {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.said)
}

// ListenAsDispatcher makes a Listener at the front's port for peers.
func (m *Media) ListenAsDispatcher(ctx context.Context) (*Listener, error) {
	own, err := agent.LoadConfig(m.configPath(FrontHost))
	if err != nil {
		return nil, err
	}
	identity, err := peer.LoadIdentity(own.TLS)
	if err != nil {
		return nil, err
	}
	l := &Listener{}
	l.Server, err = gateway.NewServer(gateway.ServerConfig{Gateways: []string{GatewayHost}, Install: func(_ context.Context, s gateway.Said) error {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.said = append(l.said, Heard{s, time.Now()})
		return nil
	}})
	if err != nil {
		return nil, err
	}
	ln, err := m.host(FrontHost).Listen(ctx, "tcp", own.Listen)
	if err != nil {
		return nil, err
	}
	serving, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var done sync.WaitGroup
	done.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			done.Go(func() { _ = l.Accept(serving, peer.Self{Host: FrontHost, Identity: identity}, conn) })
		}
	})
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closers = append(m.closers, func() error {
		cancel()
		err := ln.Close()
		done.Wait()
		return err
	})
	return l, nil
}
