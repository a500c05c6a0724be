// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/agent"
	netnslab "github.com/rehome-net/rehome/netns-lab"
)

// ProcessHosts are the hosts that a process moves between.
func ProcessHosts() [2]string { return [2]string{"a", "b"} }

// ProcessBedConfig describes a lab for whole processes to move in.
type ProcessBedConfig struct {
	// Command is how to run rehome, as in ClusterConfig.
	Command []string
	// Lab is the lab's name; "process" when empty.
	Lab string
	// Service and Port are those of the server that is to move.
	Service string
	Port    uint16
	// CRIU is the program; see FindCRIU when empty.
	CRIU string
	// NoAgents leaves rehome out: CRIU alone needs none.
	NoAgents bool
	// LogLevel is the agents'.
	LogLevel string
}

// MovingProcesses makes an agent's services those of servers that move as whole processes: ClusterConfig.Adjust.
func MovingProcesses(c *agent.Config) {
	for i := range c.Services {
		c.Services[i].Process = true
	}
}

// ProcessBed is a lab of a client, an entry and two hosts for an unmodified server.
type ProcessBed struct {
	*Cluster
	cfg  ProcessBedConfig
	criu string
	// spaces are the hosts' network namespaces, as /proc shows them.
	spaces map[string]string
}

// StartProcessBed builds the lab and starts the agents.
func StartProcessBed(ctx context.Context, cfg ProcessBedConfig) (*ProcessBed, error) {
	if cfg.Lab == "" {
		cfg.Lab = "process"
	}
	criu, err := FindCRIU(ctx, cfg.CRIU)
	if err != nil {
		return nil, err
	}
	hosts := ProcessHosts()
	topo := netnslab.Standard(len(hosts))
	topo.Name = cfg.Lab
	b := &ProcessBed{cfg: cfg, criu: criu, spaces: make(map[string]string)}
	cc := ClusterConfig{
		Topology: topo, Command: cfg.Command, Root: "/", LogLevel: cfg.LogLevel, NoServers: true,
		Adjust: func(c *agent.Config) {
			service := agent.ServiceConfig{Name: cfg.Service, Entry: "entry", Servers: hosts[:], Process: true}
			for _, vip := range topo.VIPs {
				service.Addresses = append(service.Addresses, netip.AddrPortFrom(vip, cfg.Port))
			}
			c.Services = []agent.ServiceConfig{service}
			c.Process.CRIU = criu
		},
	}
	if cfg.NoAgents {
		cc.NoAgent = []string{"entry", "a", "b"}
	}
	if b.Cluster, err = StartCluster(ctx, cc); err != nil {
		return nil, err
	}
	for _, h := range b.Lab.Hosts() {
		err := h.Do(func() (err error) {
			b.spaces[h.Name()], err = os.Readlink("/proc/thread-self/ns/net")
			return err
		})
		if err != nil {
			return nil, errors.Join(err, b.Close())
		}
	}
	return b, nil
}

// Close ends every server, wherever it is, and takes the lab down.
func (b *ProcessBed) Close() error {
	return errors.Join(b.killServers(), b.Cluster.Close())
}

// host returns a host of the lab, which has those that are asked for.
func (b *ProcessBed) host(name string) *netnslab.Host {
	h, err := b.Lab.Host(name)
	if err != nil {
		return nil
	}
	return h
}

// Dial connects the client.
func (b *ProcessBed) Dial(ctx context.Context, to netip.AddrPort) (*net.TCPConn, error) {
	c, err := b.host("client").Dial(ctx, "tcp", to.String())
	if err != nil {
		return nil, err
	}
	conn, ok := c.(*net.TCPConn)
	if !ok {
		return nil, errors.Join(fmt.Errorf("%T is no TCP connection", c), c.Close())
	}
	return conn, nil
}

// Server is an unmodified server that runs in a host.
type Server struct {
	// PID is the first of its processes, Host where it is. Whoever moves it sets both.
	PID  int
	Host string
	d    *daemon
}

// Log returns what the server has written.
func (s *Server) Log() string {
	text, _ := os.ReadFile(s.d.log)
	return string(text)
}

// StartServer starts a server in a host, in a session of its own as an init system would, and waits until it listens.
func (b *ProcessBed) StartServer(ctx context.Context, host string, command ...string) (*Server, error) {
	d, err := b.launch(ctx, host, "process", command, &unix.SysProcAttr{Setsid: true})
	if err != nil {
		return nil, err
	}
	s := &Server{PID: d.cmd.Process.Pid, Host: host, d: d}
	return s, b.await(ctx, d, func(context.Context) error {
		on, err := b.listens(host)
		if err == nil && !on {
			err = fmt.Errorf("nothing listens on port %d", b.cfg.Port)
		}
		return err
	})
}

// listens reports whether something listens on the service's port in a host.
func (b *ProcessBed) listens(host string) (on bool, err error) {
	err = b.host(host).Do(func() error {
		for _, file := range []string{"tcp", "tcp6"} {
			text, err := os.ReadFile("/proc/thread-self/net/" + file)
			if err != nil {
				return err
			}
			on = on || listening(string(text), b.cfg.Port)
		}
		return nil
	})
	return on, err
}

// listening looks for a listening socket in the text of /proc/net/tcp or tcp6.
func listening(text string, port uint16) bool {
	const stateListen = "0A"
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) > 3 && fields[3] == stateListen && strings.HasSuffix(fields[1], fmt.Sprintf(":%04X", port)) {
			return true
		}
	}
	return false
}

// processes returns the processes in a host's network namespace that the lab's own are not among.
func (b *ProcessBed) processes(host string) ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var list []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		space, err := os.Readlink(filepath.Join("/proc", e.Name(), "ns/net"))
		if err != nil || space != b.spaces[host] {
			continue // it is elsewhere, or has ended since
		}
		if d := b.agents[host]; d == nil || d.cmd.Process.Pid != pid {
			list = append(list, pid)
		}
	}
	return list, nil
}

// killServers ends what runs in the two hosts beside the agents, also what a move has left half-way.
func (b *ProcessBed) killServers() error {
	for _, host := range ProcessHosts() {
		deadline := time.Now().Add(startTimeout)
		for {
			pids, err := b.processes(host)
			if err != nil {
				return err
			}
			// The kernel closes a process's sockets after its namespaces.
			listens, err := b.listens(host)
			if err != nil {
				return err
			}
			if len(pids) == 0 && !listens {
				break
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("processes %v in %s do not end; listening: %v", pids, host, listens)
			}
			for _, pid := range pids {
				if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
					return fmt.Errorf("kill %d: %w", pid, err)
				}
			}
			time.Sleep(time.Millisecond)
		}
	}
	return nil
}
