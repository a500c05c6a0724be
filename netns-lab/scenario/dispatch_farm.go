// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/rehome-net/rehome/agent"
	netnslab "github.com/rehome-net/rehome/netns-lab"
)

// FarmConfig describes a Farm. Its zero value is complete but for Command.
type FarmConfig struct {
	// Command is how to run rehome, as in ClusterConfig.
	Command []string
	// Lab is the lab's name; "dispatch" when empty.
	Lab string
	// BigSize is the length of the file /big, in bytes; 2 GiB when zero. It takes no room: all of it is a hole.
	BigSize int64
	// NoiseSize is the length of the file /noise, in bytes; 1 MiB when zero. Its content is Farm.Noise's.
	NoiseSize int64
	// Pace is the rate of the slow downloads of MeasureRestart in bytes per second; 128 KiB when zero. NoiseSize and Pace
	// say how long they take.
	Pace int64
	// Agents starts an agent on each backend. None runs on the front's host.
	Agents bool
	// Adjust changes an agent's configuration before it is written; may be nil.
	Adjust func(*agent.Config)
	// LogLevel is the agents'; "info" when empty.
	LogLevel string
}

func (c FarmConfig) withDefaults() FarmConfig {
	if c.Lab == "" {
		c.Lab = "dispatch"
	}
	if c.BigSize == 0 {
		c.BigSize = 2 << 30
	}
	if c.NoiseSize == 0 {
		c.NoiseSize = 1 << 20
	}
	if c.Pace == 0 {
		c.Pace = 128 << 10
	}
	return c
}

// Farm is a standing lab with servers of different kinds, for a Front to dispatch to: the demo server, nginx, and nginx
// and redis together. Each listens on the virtual addresses and on the host's own. HTTP servers have the files /who (the
// host's name), /small (some 100 bytes), /noise and /big.
type Farm struct {
	*Cluster
	cfg       FarmConfig
	authority *authority
	// Noise is the content of /noise.
	Noise netnslab.Noise

	mu       sync.Mutex
	programs []*program
	backends map[string][]*program // by host; the demo server is a program of its own when there are no agents
}

// FarmPrograms are what a Farm needs on the machine beside rehome.
func FarmPrograms() []string { return []string{"nginx", "redis-server"} }

// StartFarm builds the lab, starts the servers and returns when all of them answer at their own addresses. Close takes all of it
// down, as a failure does.
func StartFarm(ctx context.Context, cfg FarmConfig) (_ *Farm, err error) {
	cfg = cfg.withDefaults()
	if err := need(FarmPrograms()...); err != nil {
		return nil, err
	}
	without := []string{FrontHost}
	if !cfg.Agents {
		without = append(without, LinkedHost, NginxHost, MixedHost)
	}
	cluster, err := StartCluster(ctx, ClusterConfig{
		Topology: DispatchTopology(cfg.Lab), Command: cfg.Command, LogLevel: cfg.LogLevel,
		Root: filepath.Join(ClusterDir(cfg.Lab), LinkedHost, "www"), NoServers: true, NoAgent: without, Adjust: cfg.Adjust,
	})
	if err != nil {
		return nil, err
	}
	f := &Farm{
		Cluster: cluster, cfg: cfg, backends: make(map[string][]*program),
		Noise: netnslab.Noise{Seed: 7, Size: cfg.NoiseSize},
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	if err := f.writeFiles(); err != nil {
		return nil, err
	}
	for _, host := range cluster.Servers() {
		if err := f.StartBackend(ctx, host); err != nil {
			return nil, err
		}
	}
	return f, nil
}

// StartBackend starts the servers of a host and returns when they answer.
func (f *Farm) StartBackend(ctx context.Context, host string) error {
	var commands [][]string
	switch {
	case host == LinkedHost && f.cfg.Agents:
		if err := f.StartServer(ctx, host); err != nil {
			return err
		}
		return f.answers(ctx, host)
	case host == LinkedHost:
		commands = append(commands, append(slices.Clone(f.cfg.Command), "lab", "serve", "--root", f.Cluster.cfg.Root, "--files", fmt.Sprintf(":%d", FilesPort)))
	case host == MixedHost:
		if f.cfg.Agents { // to which LinkedHost is drained
			if err := f.StartServer(ctx, host); err != nil {
				return err
			}
		}
		commands = append(commands, []string{"nginx", "-c", f.path(host, "nginx.conf")}, []string{"redis-server", f.path(host, "redis.conf")})
	default:
		commands = append(commands, []string{"nginx", "-c", f.path(host, "nginx.conf")})
	}
	for _, c := range commands {
		p, err := f.launch(ctx, host, filepath.Base(c[0]), c...)
		if err != nil {
			return err
		}
		f.mu.Lock()
		f.backends[host] = append(f.backends[host], p)
		f.mu.Unlock()
	}
	return f.answers(ctx, host)
}

// StopBackend ends the servers of a host in order, KillBackend as a crash would.
func (f *Farm) StopBackend(host string) error { return f.endBackend(host, stop, (*program).stop) }

// KillBackend is described at StopBackend.
func (f *Farm) KillBackend(host string) error { return f.endBackend(host, kill, (*program).kill) }

func (f *Farm) endBackend(host string, linked func(*daemon) error, end func(*program) error) error {
	f.mu.Lock()
	list := f.backends[host]
	delete(f.backends, host)
	f.mu.Unlock()
	var errs []error
	if d := f.servers[host]; d != nil {
		errs = append(errs, linked(d))
	}
	for _, p := range list {
		errs = append(errs, end(p))
	}
	return errors.Join(errs...)
}

// processes returns the processes that serve on a host.
func (f *Farm) processes(host string) ([]int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []int
	if d := f.servers[host]; d != nil {
		all = append(all, d.cmd.Process.Pid)
	}
	for _, p := range f.backends[host] {
		pids, err := p.processes()
		if err != nil {
			return nil, err
		}
		all = append(all, pids...)
	}
	return all, nil
}

// launch starts a program on a host; the farm ends it when it is closed, at the latest.
func (f *Farm) launch(ctx context.Context, host, name string, command ...string) (*program, error) {
	p, err := f.launchProgram(ctx, host, name, command...)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.programs = append(f.programs, p)
	return p, nil
}

// Close ends every server and every front, and takes the lab down.
func (f *Farm) Close() error {
	f.mu.Lock()
	programs := f.programs
	f.programs = nil
	f.mu.Unlock()
	var errs []error
	for _, p := range slices.Backward(programs) {
		errs = append(errs, p.stop())
	}
	return errors.Join(append(errs, f.Cluster.Close())...)
}

// path returns where the farm keeps a file of a host.
func (f *Farm) path(host, name string) string { return filepath.Join(f.dir, host, name) }

// host returns a host of the topology, which has all that this package names.
func (f *Farm) host(name string) *netnslab.Host {
	h, err := f.Lab.Host(name)
	if err != nil {
		return nil
	}
	return h
}

// Client returns the client's host.
func (f *Farm) Client() *netnslab.Host { return f.host(ClientHost) }

// Logs returns what the programs of a host have written.
func (f *Farm) Logs(host string) string {
	files, _ := filepath.Glob(f.path(host, "*.log"))
	var all []byte
	for _, name := range files {
		text, _ := os.ReadFile(name)
		all = fmt.Appendf(all, "--- %s\n%s", name, text)
	}
	return string(all)
}

// answers waits until all services of a host answer there.
func (f *Farm) answers(ctx context.Context, host string) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for _, s := range services() {
		if s.Host() != host {
			continue
		}
		if err := f.awaitAnswer(ctx, Direct(), s); err != nil {
			return fmt.Errorf("%s on %s: %w\n%s", s, host, err, f.Logs(host))
		}
	}
	return nil
}

// awaitAnswer waits until a service answers through a front.
func (f *Farm) awaitAnswer(ctx context.Context, front Front, s Service) error {
	for {
		err := f.Ask(ctx, front, s)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// writeNoise writes n to a file.
func writeNoise(path string, n netnslab.Noise) error {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = io.Copy(file, io.NewSectionReader(n, 0, n.Size))
	return errors.Join(err, file.Close())
}
