// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/rehome-net/rehome/agent/api"
	netnslab "github.com/rehome-net/rehome/netns-lab"
)

// DrainConfig describes the scene "drain": a server with many idle connections is emptied.
type DrainConfig struct {
	// Command is how to run rehome, as in ClusterConfig.
	Command []string
	// Lab is the lab's name; "drain" when empty.
	Lab string
	// Connections is how many there are; 10,000 when zero.
	Connections int
	// Concurrency is drain's; the agent's setting when zero.
	Concurrency int
	// Report gets progress; may be nil.
	Report io.Writer
	// LogLevel is the agents'.
	LogLevel string
}

// DrainResult is what came of it.
type DrainResult struct {
	Scenario    string   `json:"scenario"`
	OK          bool     `json:"ok"`
	Problems    []string `json:"problems,omitempty"`
	Connections int      `json:"connections"`
	Moved       int      `json:"moved"`
	// DrainMillis is the time of the whole drain, as its summary says.
	DrainMillis float64 `json:"drainMillis"`
	// FreezeMicros are those of the single connections.
	FreezeMicros Quantiles `json:"freezeMicros"`
	// AgentBytesPerConnection is by how much the agent's resident memory had grown when all connections stood, before
	// the drain, for each.
	AgentBytesPerConnection float64 `json:"agentBytesPerConnection"`
	// Broken counts connections that did not answer afterwards.
	Broken int `json:"broken"`
}

// Drain plays the scene: every connection asks once before and once after the drain.
func Drain(ctx context.Context, cfg DrainConfig) (_ *DrainResult, err error) {
	if cfg.Lab == "" {
		cfg.Lab = "drain"
	}
	if cfg.Connections == 0 {
		cfg.Connections = 10000
	}
	if cfg.Report == nil {
		cfg.Report = io.Discard
	}
	topo := netnslab.Standard(2)
	topo.Name = cfg.Lab
	cluster, err := StartCluster(ctx, ClusterConfig{Topology: topo, Command: cfg.Command, Root: "/", LogLevel: cfg.LogLevel})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, cluster.Close()) }()
	d := &drain{cfg: cfg, cluster: cluster, result: DrainResult{Scenario: "drain", Connections: cfg.Connections}}
	if err := d.play(ctx, topo); err != nil {
		return nil, err
	}
	return &d.result, nil
}

type drain struct {
	cfg     DrainConfig
	cluster *Cluster
	conns   []net.Conn
	result  DrainResult
}

func (d *drain) play(ctx context.Context, topo netnslab.Topology) error {
	// A drained host gets no connections: so all of them come to a.
	if _, _, err := d.cluster.MoveAll(ctx, "b", &api.MoveRequest{Drain: true}); err != nil {
		return err
	}
	before, err := d.cluster.memory("a")
	if err != nil {
		return err
	}
	defer func() {
		for _, c := range d.conns {
			_ = c.Close()
		}
	}()
	if err := d.connect(ctx, netip.AddrPortFrom(topo.VIP4(), EchoPort).String()); err != nil {
		return err
	}
	if n := d.ask(ctx); n > 0 {
		return fmt.Errorf("%d connections did not answer before the drain", n)
	}
	after, err := d.cluster.memory("a")
	if err != nil {
		return err
	}
	d.result.AgentBytesPerConnection = float64(after-before) / float64(d.cfg.Connections)
	b, err := d.cluster.Client("b")
	if err != nil {
		return err
	}
	if _, err := b.Undrain(ctx, &api.UndrainRequest{}); err != nil {
		return err
	}
	fmt.Fprintf(d.cfg.Report, "%d connections stand; draining\n", d.cfg.Connections)
	moved, sum, err := d.cluster.MoveAll(ctx, "a", &api.MoveRequest{Drain: true, Concurrency: uint32(d.cfg.Concurrency)})
	if err != nil {
		return err
	}
	d.result.Broken = d.ask(ctx)
	d.judge(moved, sum)
	return nil
}

func (d *drain) judge(moved []*api.Moved, sum *api.Summary) {
	r := &d.result
	var freeze []int64
	for _, m := range moved {
		freeze = append(freeze, m.GetFreezeMicros())
		if m.GetError() != "" && len(r.Problems) < 10 {
			r.Problems = append(r.Problems, fmt.Sprintf("%s: %s: %s", m.GetFlow(), m.GetOutcome(), m.GetError()))
		}
	}
	r.FreezeMicros = quantiles(freeze)
	r.Moved = int(sum.GetMoved())
	r.DrainMillis = float64(sum.GetTotalMicros()) / 1000
	if r.Moved != d.cfg.Connections {
		r.Problems = append(r.Problems, fmt.Sprintf("%d of %d connections were moved", r.Moved, d.cfg.Connections))
	}
	if r.Broken > 0 {
		r.Problems = append(r.Problems, fmt.Sprintf("%d connections do not answer", r.Broken))
	}
	r.OK = len(r.Problems) == 0
}

// connect opens all connections, some at a time.
func (d *drain) connect(ctx context.Context, address string) error {
	client, err := d.cluster.Lab.Host("client")
	if err != nil {
		return err
	}
	d.conns = make([]net.Conn, d.cfg.Connections)
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(16)
	for i := range d.conns {
		group.Go(func() error {
			var err error
			d.conns[i], err = client.Dial(gctx, "tcp", address)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		n := 0
		for _, c := range d.conns {
			if c != nil {
				d.conns[n] = c
				n++
			}
		}
		d.conns = d.conns[:n]
		return err
	}
	return nil
}

// ask sends a line over every connection and returns how many did not echo it.
func (d *drain) ask(ctx context.Context) int {
	var broken atomic.Int64
	group, _ := errgroup.WithContext(ctx)
	group.SetLimit(64)
	for i, c := range d.conns {
		group.Go(func() error {
			_ = c.SetDeadline(time.Now().Add(20 * time.Second))
			line := fmt.Appendf(nil, "connection %d\n", i)
			got := make([]byte, len(line))
			if _, err := c.Write(line); err != nil {
				broken.Add(1)
			} else if _, err := io.ReadFull(c, got); err != nil || string(got) != string(line) {
				broken.Add(1)
			}
			return nil
		})
	}
	_ = group.Wait()
	return int(broken.Load())
}

// memory returns the resident memory of a host's agent, in bytes.
func (c *Cluster) memory(host string) (int64, error) {
	d := c.agents[host]
	if d == nil {
		return 0, errors.New("not started")
	}
	text, err := os.ReadFile("/proc/" + strconv.Itoa(d.cmd.Process.Pid) + "/status")
	if err != nil {
		return 0, err
	}
	for _, line := range strings.Split(string(text), "\n") {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(rest, "kB")), 10, 64)
			return kib << 10, err
		}
	}
	return 0, fmt.Errorf("no VmRSS in the status of process %d", d.cmd.Process.Pid)
}
