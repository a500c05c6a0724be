// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rehome-net/rehome/agent"
	"github.com/rehome-net/rehome/dispatcher"
	netnslab "github.com/rehome-net/rehome/netns-lab"
)

// Ports of Media's signalling.
const (
	RTSPPort = 554
	SIPPort  = 5060
	FTPPort  = 21
)

// Media's servers use different ports for media, so that a packet at the wrong one is seen. Each has portsEach of each kind.
const (
	rtpPorts  = 8000  // RTSP's
	sipPorts  = 6000  // sipp's echo
	ftpPorts  = 20000 // passive FTP's
	portsEach = 100
)

// MediaFarmConfig describes a Media. Its zero value is complete but for Command.
type MediaFarmConfig struct {
	// Command is how to run rehome, as in ClusterConfig.
	Command []string
	// Lab is the lab's name; "media" when empty.
	Lab string
	// Agents starts an agent on each server.
	Agents bool
	// Hold is how long the gateway holds an answer at most; its default when zero.
	Hold time.Duration
	// LogLevel is that of rehome's processes; "info" when empty.
	LogLevel string
	// Agent and Dispatcher change a configuration before it is written; may be nil.
	Agent      func(*agent.Config)
	Dispatcher func(*dispatcher.Config)
}

// Media is a standing lab in which programs that nobody changed serve RTSP, SIP, FTP and DNS. Until something dispatches, the virtual
// addresses are those of one server (Point).
type Media struct {
	*Cluster
	cfg MediaFarmConfig

	mu       sync.Mutex
	programs []*program
	closers  []func() error
}

// MediaPrograms are what a Media needs on the machine beside rehome.
func MediaPrograms() []string {
	return []string{"sipp", "ffmpeg", "vsftpd", "curl", "lftp", "dnsmasq", "dig"}
}

// StartMedia builds the lab. Close takes it down with everything that was started in it.
func StartMedia(ctx context.Context, cfg MediaFarmConfig) (_ *Media, err error) {
	if cfg.Lab == "" {
		cfg.Lab = "media"
	}
	if err := need(MediaPrograms()...); err != nil {
		return nil, err
	}
	without := []string{FrontHost}
	if !cfg.Agents {
		without = append(without, MediaHost1, MediaHost2, MediaHost3)
	}
	services := mediaAgents(MediaTopology(cfg.Lab).VIPs)
	cluster, err := StartCluster(ctx, ClusterConfig{
		Topology: MediaTopology(cfg.Lab), Command: cfg.Command, LogLevel: cfg.LogLevel, NoServers: true, NoAgent: without,
		Adjust: func(c *agent.Config) {
			services(c)
			if cfg.Agent != nil {
				cfg.Agent(c)
			}
		},
	})
	if err != nil {
		return nil, err
	}
	m := &Media{Cluster: cluster, cfg: cfg}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.Close())
		}
	}()
	for _, host := range []string{ClientHost, GatewayHost} {
		if err := os.MkdirAll(m.path(host, "."), 0o755); err != nil {
			return nil, err
		}
	}
	return m, setMediaRoutes(m.Lab)
}

// Close ends everything and takes the lab down.
func (m *Media) Close() error {
	m.mu.Lock()
	programs, closers := m.programs, m.closers
	m.programs, m.closers = nil, nil
	m.mu.Unlock()
	var errs []error
	for _, p := range slices.Backward(programs) {
		errs = append(errs, p.stop())
	}
	for _, c := range slices.Backward(closers) {
		errs = append(errs, c())
	}
	return errors.Join(append(errs, m.Cluster.Close())...)
}

// VIP is the virtual address that the clients use.
func (m *Media) VIP() netip.Addr { return m.Lab.Topology().VIP4() }

// path returns where files of a host are.
func (m *Media) path(host, name string) string { return filepath.Join(m.dir, host, name) }

// host returns a host of the topology, which has all that this package names.
func (m *Media) host(name string) *netnslab.Host {
	h, err := m.Lab.Host(name)
	if err != nil {
		return nil
	}
	return h
}

// number returns a server's place, from 0.
func (m *Media) number(server string) int { return slices.Index(m.Servers(), server) }

// Point leads the client's packets to the virtual addresses to a host, past whatever answers ARP.
func (m *Media) Point(host string) error {
	l, err := m.host(host).Link()
	if err != nil {
		return err
	}
	for _, vip := range m.Lab.Topology().VIPs {
		if err := m.host(ClientHost).SetNeighbor(vip, l.MAC); err != nil {
			return err
		}
	}
	return nil
}

// launch starts a program, which ends with the lab at the latest.
func (m *Media) launch(ctx context.Context, host, name string, command ...string) (*program, error) {
	p, err := m.launchProgram(ctx, host, name, command...)
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.programs = append(m.programs, p)
	return p, nil
}

// run runs a client's program to its end and returns what it wrote. The program has limit to end.
func (m *Media) run(ctx context.Context, limit time.Duration, dir string, command ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	c := m.host(ClientHost).Command(ctx, command[0], command[1:]...)
	c.Dir = dir
	c.Env = append(os.Environ(), "TERM=dumb", "HOME="+dir)
	out, err := c.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("%s: %w: %s", strings.Join(command, " "), err, lastLines(string(out), 6))
	}
	return string(out), nil
}

// lastLines returns the end of a text.
func lastLines(text string, n int) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// complaints returns the ends of all logs that the lab's programs have written, for who must find out what went wrong.
func (m *Media) complaints() string {
	var b strings.Builder
	files, _ := filepath.Glob(m.path("*", "*.log")) // the pattern is right
	for _, file := range files {
		if text, err := os.ReadFile(file); err == nil && len(text) > 0 {
			fmt.Fprintf(&b, "%s:\n%s\n", strings.TrimPrefix(file, m.dir), lastLines(string(text), 20))
		}
	}
	return b.String()
}

// listening waits until a port is bound on a host, as /proc/net shows it.
func (m *Media) listening(ctx context.Context, p *program, host, table string, at netip.AddrPort) error {
	return m.await(ctx, p.daemon, func(context.Context) error { return boundAt(m.host(host), table, at) })
}

// boundAt returns nil when a port is bound on a host: table is "udp" or "tcp".
func boundAt(h *netnslab.Host, table string, at netip.AddrPort) error {
	a := at.Addr().As4()
	want := fmt.Sprintf(" %02X%02X%02X%02X:%04X ", a[3], a[2], a[1], a[0], at.Port())
	return h.Do(func() error {
		text, err := os.ReadFile("/proc/thread-self/net/" + table)
		if err == nil && !strings.Contains(string(text), want) {
			err = fmt.Errorf("%s does not listen at %v %v yet", h.Name(), table, at)
		}
		return err
	})
}

// mediaAgents returns what changes an agent's configuration: it knows Media's signalling, with the front as the entry.
func mediaAgents(vips []netip.Addr) func(*agent.Config) {
	return func(c *agent.Config) {
		c.Services = nil
		for _, s := range mediaServices() {
			c.Services = append(c.Services, agent.ServiceConfig{
				Name: s.name, Addresses: at(vips, s.port), Entry: FrontHost, Servers: []string{MediaHost1, MediaHost2, MediaHost3},
			})
		}
	}
}
