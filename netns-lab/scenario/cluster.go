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
	"strconv"
	"sync"
	"time"

	"go.yaml.in/yaml/v3"
	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/agent"
	"github.com/rehome-net/rehome/agent/api"
	netnslab "github.com/rehome-net/rehome/netns-lab"
	"github.com/rehome-net/rehome/netns-lab/demo"
)

// Ports of the demo services.
const (
	FilesPort = 80
	EchoPort  = 7
)

// runDir is where clusters keep sockets, configurations and logs, one directory each.
const runDir = "/run/rehome-lab"

// startTimeout bounds the start of one process.
const startTimeout = 20 * time.Second

// ClusterConfig describes a lab with rehome running in it.
type ClusterConfig struct {
	Topology netnslab.Topology
	// Command is how to run rehome: its program, and arguments before the subcommand's.
	Command []string
	// Root is the directory that the file servers serve.
	Root string
	// LogLevel is the agents'; "info" when empty.
	LogLevel string
	// Adjust changes an agent's configuration before it is written; may be nil.
	Adjust func(*agent.Config)
	// Serve are further arguments of "rehome lab serve".
	Serve []string
	// NoServers leaves the demo servers out.
	NoServers bool
	// NoAgent are hosts that no agent is started on.
	NoAgent []string
}

// Cluster is a standing lab in which an agent runs on the entry and on every server, and the demo server on every server.
type Cluster struct {
	Lab     *netnslab.Lab
	cfg     ClusterConfig
	dir     string
	ca      *authority // signs the hosts' certificates
	agents  map[string]*daemon
	servers map[string]*daemon

	mu      sync.Mutex
	clients map[string]*api.Client
}

// daemon is a process of the cluster.
type daemon struct {
	cmd  *netnslab.Cmd
	done chan struct{} // closed when it has ended
	log  string
	file *os.File
}

// StartCluster builds the lab and starts everything in it; it returns when the demo servers have registered. Close takes
// all of it down, as a failure does.
func StartCluster(ctx context.Context, cfg ClusterConfig) (_ *Cluster, err error) {
	lab, err := netnslab.Build(ctx, cfg.Topology)
	if err != nil {
		return nil, err
	}
	c := &Cluster{
		Lab: lab, cfg: cfg, dir: ClusterDir(cfg.Topology.Name),
		agents: make(map[string]*daemon), servers: make(map[string]*daemon), clients: make(map[string]*api.Client),
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Close())
		}
	}()
	if err := c.writeConfigs(); err != nil {
		return nil, err
	}
	for _, h := range c.hosts("") {
		if slices.Contains(cfg.NoAgent, h.Name()) {
			continue
		}
		if err := c.StartAgent(ctx, h.Name()); err != nil {
			return nil, err
		}
	}
	for host, d := range c.agents {
		if err := c.await(ctx, d, func(ctx context.Context) error { return c.knowsPeers(ctx, host) }); err != nil {
			return nil, err
		}
	}
	if cfg.NoServers {
		return c, nil
	}
	for _, name := range c.Servers() {
		if err := c.StartServer(ctx, name); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// ClusterDir returns where a cluster keeps its files.
func ClusterDir(lab string) string { return filepath.Join(runDir, lab+".d") }

// ControlSocket returns the path of an agent's control socket.
func ControlSocket(lab, host string) string {
	return filepath.Join(ClusterDir(lab), host, "control.sock")
}

// AgentSocket returns the path of an agent's socket for applications.
func AgentSocket(lab, host string) string { return filepath.Join(ClusterDir(lab), host, "agent.sock") }

// hosts returns the hosts of a role, all but clients when role is empty.
func (c *Cluster) hosts(role netnslab.Role) []*netnslab.Host {
	var list []*netnslab.Host
	for _, h := range c.Lab.Hosts() {
		if r := h.Spec().Role; r == role || role == "" && r != netnslab.RoleClient {
			list = append(list, h)
		}
	}
	return list
}

// Servers returns the names of the servers.
func (c *Cluster) Servers() []string {
	var names []string
	for _, h := range c.hosts(netnslab.RoleServer) {
		names = append(names, h.Name())
	}
	return names
}

// writeConfigs writes every agent's configuration and certificate.
func (c *Cluster) writeConfigs() error {
	if err := mountPinDir(c.Lab.Topology().Name); err != nil {
		return err
	}
	var err error
	if c.ca, err = newAuthority(c.dir); err != nil {
		return err
	}
	for i, h := range c.hosts("") {
		if err := os.MkdirAll(filepath.Join(c.dir, h.Name()), 0o755); err != nil {
			return err
		}
		cfg := c.agentConfig(h)
		if cfg.TLS, err = c.ca.issue(h.Name(), int64(i)+2); err != nil {
			return err
		}
		if c.cfg.Adjust != nil {
			c.cfg.Adjust(&cfg)
		}
		raw, err := yaml.Marshal(cfg)
		if err != nil {
			return err
		}
		if err := os.WriteFile(c.configPath(h.Name()), raw, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func (c *Cluster) configPath(host string) string { return filepath.Join(c.dir, host, "agent.yaml") }

func (c *Cluster) agentConfig(h *netnslab.Host) agent.Config {
	topo := c.Lab.Topology()
	cfg := agent.Config{
		Host:         h.Name(),
		Interfaces:   []string{netnslab.Interface},
		Listen:       netip.AddrPortFrom(h.Addr4(), 7070).String(),
		Control:      ControlSocket(topo.Name, h.Name()),
		Applications: AgentSocket(topo.Name, h.Name()),
		Gate:         agent.GateConfig{Pin: filepath.Join(pinDir(topo.Name), h.Name())},
	}
	entry := ""
	for i, p := range c.hosts("") {
		if p.Spec().Role == netnslab.RoleEntry {
			entry = p.Name()
		}
		if p.Name() != h.Name() {
			cfg.Peers = append(cfg.Peers, agent.PeerConfig{
				Name: p.Name(), Address: netip.AddrPortFrom(p.Addr4(), 7070).String(), ID: uint16(i) + 1,
			})
		}
	}
	for _, s := range []struct {
		name string
		port uint16
	}{{demo.FilesService, FilesPort}, {demo.EchoService, EchoPort}} {
		service := agent.ServiceConfig{Name: s.name, Entry: entry, Servers: c.Servers()}
		for _, vip := range topo.VIPs {
			service.Addresses = append(service.Addresses, netip.AddrPortFrom(vip, s.port))
		}
		cfg.Services = append(cfg.Services, service)
	}
	return cfg
}

// StartAgent starts the agent of a host and waits until it answers.
func (c *Cluster) StartAgent(ctx context.Context, host string) error {
	level := c.cfg.LogLevel
	if level == "" {
		level = "info"
	}
	d, err := c.start(ctx, host, "agent", "agent", "--config", c.configPath(host), "--log-level", level)
	if err != nil {
		return err
	}
	c.agents[host] = d
	return c.await(ctx, d, func(ctx context.Context) error {
		_, err := c.Status(ctx, host)
		return err
	})
}

// knowsPeers returns nil when a host's agent can send packets to all others.
func (c *Cluster) knowsPeers(ctx context.Context, host string) error {
	st, err := c.Status(ctx, host)
	if err != nil {
		return err
	}
	for _, p := range st.GetPeers() {
		if p.GetMac() == "" {
			return fmt.Errorf("%s does not know the link-layer address of %s yet", host, p.GetName())
		}
	}
	return nil
}

// StartServer starts the demo server of a host and waits until the agent knows it.
func (c *Cluster) StartServer(ctx context.Context, host string) error {
	args := []string{
		"lab", "serve", "--agent-socket", AgentSocket(c.Lab.Topology().Name, host), "--root", c.cfg.Root,
		"--files", fmt.Sprintf(":%d", FilesPort), "--echo", fmt.Sprintf(":%d", EchoPort),
	}
	d, err := c.start(ctx, host, "server", append(args, c.cfg.Serve...)...)
	if err != nil {
		return err
	}
	c.servers[host] = d
	return c.awaitRegistered(ctx, host)
}

// awaitRegistered waits until a host's demo server has registered with its agent.
func (c *Cluster) awaitRegistered(ctx context.Context, host string) error {
	return c.await(ctx, c.servers[host], func(ctx context.Context) error {
		st, err := c.Status(ctx, host)
		if err != nil {
			return err
		}
		for _, s := range st.GetServices() {
			ours := s.GetName() == demo.FilesService || s.GetName() == demo.EchoService
			if ours && s.GetApplications() == 0 {
				return fmt.Errorf("%s has not registered yet", s.GetName())
			}
		}
		return nil
	})
}

// start starts rehome in a host.
func (c *Cluster) start(ctx context.Context, host, name string, args ...string) (*daemon, error) {
	return c.launch(ctx, host, name, append(slices.Clone(c.cfg.Command), args...), nil)
}

// launch starts any program in a host; name is that of its log. attr may be nil.
func (c *Cluster) launch(ctx context.Context, host, name string, command []string, attr *unix.SysProcAttr) (*daemon, error) {
	h, err := c.Lab.Host(host)
	if err != nil {
		return nil, err
	}
	cmd := h.Command(context.WithoutCancel(ctx), command[0], command[1:]...)
	cmd.SysProcAttr = attr
	d := &daemon{cmd: cmd, done: make(chan struct{}), log: filepath.Join(c.dir, host, name+".log")}
	if d.file, err = os.OpenFile(d.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644); err != nil {
		return nil, err
	}
	cmd.Stdout, cmd.Stderr = d.file, d.file
	if err := cmd.Start(); err != nil {
		_ = d.file.Close()
		return nil, err
	}
	pid := strconv.Itoa(cmd.Process.Pid)
	if err := os.WriteFile(filepath.Join(c.dir, host, name+".pid"), []byte(pid), 0o644); err != nil {
		return nil, errors.Join(err, cmd.Process.Kill(), cmd.Wait(), d.file.Close())
	}
	go func() {
		defer close(d.done)
		_ = cmd.Wait() // how it ended stands in its log
		_ = d.file.Close()
	}()
	return d, nil
}

// await waits until ready returns nil.
func (c *Cluster) await(ctx context.Context, d *daemon, ready func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		err := ready(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-d.done:
			text, _ := os.ReadFile(d.log)
			return fmt.Errorf("%s ended: %s", d.log, text)
		case <-ctx.Done():
			text, _ := os.ReadFile(d.log)
			return fmt.Errorf("%s is not ready: %w: %s", d.log, err, text)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Client returns a client of a host's agent, which the cluster closes.
func (c *Cluster) Client(host string) (*api.Client, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if client, ok := c.clients[host]; ok {
		return client, nil
	}
	client, err := api.Dial(ControlSocket(c.Lab.Topology().Name, host), nil)
	if err == nil {
		c.clients[host] = client
	}
	return client, err
}

func (c *Cluster) closeClients() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, client := range c.clients {
		_ = client.Close()
	}
	clear(c.clients)
}

// Status asks a host's agent for its status.
func (c *Cluster) Status(ctx context.Context, host string) (*api.StatusResponse, error) {
	client, err := c.Client(host)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	return client.Status(ctx, &api.StatusRequest{})
}

// KillAgent ends a host's agent as a crash would; KillServer does so to its demo server. They return when it has ended.
func (c *Cluster) KillAgent(host string) error { return kill(c.agents[host]) }

// KillServer is described at KillAgent.
func (c *Cluster) KillServer(host string) error { return kill(c.servers[host]) }

// StopAgent ends a host's agent in order.
func (c *Cluster) StopAgent(host string) error { return stop(c.agents[host]) }

func kill(d *daemon) error {
	if d == nil {
		return errors.New("not started")
	}
	if err := d.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-d.done
	return nil
}

func stop(d *daemon) error {
	if d == nil {
		return errors.New("not started")
	}
	if err := d.cmd.Process.Signal(os.Interrupt); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-d.done:
		return nil
	case <-time.After(startTimeout):
		_ = d.cmd.Process.Signal(unix.SIGQUIT) // the Go runtime says what it waits for
		select {
		case <-d.done:
		case <-time.After(time.Second):
		}
		text, _ := os.ReadFile(d.log)
		return errors.Join(fmt.Errorf("%s does not end; its log:\n%s", d.log, text), kill(d))
	}
}

// Logs returns what a host's agent and demo server have written.
func (c *Cluster) Logs(host string) string {
	var all []byte
	for _, name := range []string{"agent.log", "server.log"} {
		text, _ := os.ReadFile(filepath.Join(c.dir, host, name))
		all = append(all, text...)
	}
	return string(all)
}

// Release leaves the cluster standing; TakeDown removes it.
func (c *Cluster) Release() error {
	c.closeClients()
	return c.Lab.Release()
}

// Close takes everything down.
func (c *Cluster) Close() error {
	c.closeClients()
	for _, d := range c.servers {
		_ = kill(d)
	}
	var errs []error
	for host, d := range c.agents {
		select {
		case <-d.done:
		default:
			if err := stop(d); err != nil {
				errs = append(errs, fmt.Errorf("agent %s: %w", host, err))
			}
		}
	}
	name := c.Lab.Topology().Name
	errs = append(errs, c.Lab.Close(), cleanUp(name))
	return errors.Join(errs...)
}

// TakeDown removes a cluster that another process has left standing.
func TakeDown(lab string) error {
	return errors.Join(netnslab.Down(lab), cleanUp(lab))
}

// pinDir is a BPF file system of the cluster's own, which holds every host's pinned tables.
func pinDir(lab string) string { return filepath.Join(ClusterDir(lab), "bpf") }

func mountPinDir(lab string) error {
	if err := os.MkdirAll(pinDir(lab), 0o700); err != nil {
		return err
	}
	if err := unix.Mount("rehome-lab", pinDir(lab), "bpf", 0, "mode=0700"); err != nil {
		return fmt.Errorf("mount a BPF file system at %s: %w", pinDir(lab), err)
	}
	return nil
}

// cleanUp removes what outlives the processes: pinned tables and files.
func cleanUp(lab string) error {
	err := unix.Unmount(pinDir(lab), 0)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) { // not mounted
		err = nil
	}
	if err != nil {
		return fmt.Errorf("unmount %s: %w", pinDir(lab), err)
	}
	return os.RemoveAll(ClusterDir(lab))
}
