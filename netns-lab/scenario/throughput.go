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
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"github.com/rehome-net/rehome/agent"
	netnslab "github.com/rehome-net/rehome/netns-lab"
)

// ThroughputConfig describes the scene "throughput": a download at full rate, over a long line, before and after a move.
type ThroughputConfig struct {
	// Command is how to run rehome, as in ClusterConfig.
	Command []string
	// Lab is the lab's name; "throughput" when empty.
	Lab string
	// RTT is added between client and switch, Rate limits the line in bits per second; 20 ms and 200 Mb/s when zero. A
	// negative RTT leaves the line as it is.
	RTT  time.Duration
	Rate int64
	// Moves is how many moves are measured; 3 when zero.
	Moves int
	// NoSeed leaves the congestion window to the kernel, for comparison.
	NoSeed bool
	// LogLevel is the agents'.
	LogLevel string
}

// ThroughputResult is what came of it.
type ThroughputResult struct {
	Scenario string `json:"scenario"`
	OK       bool   `json:"ok"`
	// Before and After are the megabits per second in the second before and after each move.
	Before []float64 `json:"before"`
	After  []float64 `json:"after"`
	// LongestGapMillis are the longest times without data: in the second before, and in that after a move.
	GapBeforeMillis []float64 `json:"gapBeforeMillis"`
	GapAfterMillis  []float64 `json:"gapAfterMillis"`
	// RetransmittedToClient counts the packets that the servers sent again.
	RetransmittedToClient int `json:"retransmittedToClient"`
}

// Throughput plays the scene.
func Throughput(ctx context.Context, cfg ThroughputConfig) (_ *ThroughputResult, err error) {
	if cfg.Lab == "" {
		cfg.Lab = "throughput"
	}
	if cfg.Moves == 0 {
		cfg.Moves = 3
	}
	topo := netnslab.Standard(3)
	topo.Name = cfg.Lab
	if cfg.RTT >= 0 {
		if cfg.RTT == 0 {
			cfg.RTT = 20 * time.Millisecond
		}
		if cfg.Rate == 0 {
			cfg.Rate = 200_000_000
		}
		im := netnslab.RTT(cfg.RTT)
		down := im
		down.Rate, down.Queue = cfg.Rate, int(cfg.Rate/8/25) // 40 ms
		topo.Impairments = []netnslab.HostImpairment{{Host: "client", Up: im, Down: down}}
	}
	root, err := os.MkdirTemp("", "rh-throughput-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(root) //nolint:errcheck // a temporary directory
	// A sparse file: it is the network that is measured.
	if err := makeSparse(filepath.Join(root, fileName)); err != nil {
		return nil, err
	}
	cluster, err := StartCluster(ctx, ClusterConfig{
		Topology: topo, Command: cfg.Command, Root: root, LogLevel: cfg.LogLevel,
		Adjust: func(c *agent.Config) {
			if cfg.NoSeed {
				off := false
				c.Migration.SeedWindow = &off
			}
		},
	})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, cluster.Close()) }()
	return measureThroughput(ctx, cfg, cluster, topo.VIP4())
}

func makeSparse(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(1<<40), f.Close())
}

func measureThroughput(ctx context.Context, cfg ThroughputConfig, cluster *Cluster, vip netip.Addr) (*ThroughputResult, error) {
	client, err := cluster.Lab.Host("client")
	if err != nil {
		return nil, err
	}
	c, err := client.Dial(ctx, "tcp", netip.AddrPortFrom(vip, FilesPort).String())
	if err != nil {
		return nil, err
	}
	conn, ok := c.(*net.TCPConn)
	if !ok {
		return nil, fmt.Errorf("%T is no TCP connection", c)
	}
	defer conn.Close() //nolint:errcheck // the download is never whole
	flow, err := flowOf(conn)
	if err != nil {
		return nil, err
	}
	if _, err := fmt.Fprintf(conn, "GET /%s HTTP/1.1\r\nHost: lab\r\n\r\n", fileName); err != nil {
		return nil, err
	}
	m := &meter{}
	done := make(chan error, 1)
	go func() { done <- m.run(conn) }()
	host, err := cluster.Find(ctx, flow)
	if err != nil {
		return nil, err
	}
	time.Sleep(2 * time.Second) // slow start
	r := &ThroughputResult{Scenario: "throughput"}
	servers := cluster.Servers()
	for range cfg.Moves {
		rate, gap := m.second()
		r.Before, r.GapBeforeMillis = append(r.Before, rate), append(r.GapBeforeMillis, gap)
		to := servers[(slices.Index(servers, host)+1)%len(servers)]
		moved := make(chan error, 1)
		go func() {
			_, err := cluster.Move(ctx, host, flow, to)
			moved <- err
		}()
		rate, gap = m.second()
		if err := <-moved; err != nil {
			return nil, err
		}
		r.After, r.GapAfterMillis = append(r.After, rate), append(r.GapAfterMillis, gap)
		host = to
		time.Sleep(time.Second)
	}
	_ = conn.SetReadDeadline(time.Now())
	<-done
	r.OK = true
	return r, nil
}

// meter reads and measures.
type meter struct {
	bytes   atomic.Int64
	longest atomic.Int64 // in nanoseconds
}

func (m *meter) run(r io.Reader) error {
	buf := make([]byte, 256<<10)
	last := time.Now()
	for {
		n, err := r.Read(buf)
		now := time.Now()
		if d := int64(now.Sub(last)); d > m.longest.Load() {
			m.longest.Store(d)
		}
		last = now
		m.bytes.Add(int64(n))
		if err != nil {
			return err
		}
	}
}

// second measures for a second: megabits per second, and the longest time without data in milliseconds.
func (m *meter) second() (rate, gap float64) {
	m.longest.Store(0)
	begin, from := time.Now(), m.bytes.Load()
	time.Sleep(time.Second)
	return float64(m.bytes.Load()-from) * 8 / time.Since(begin).Seconds() / 1e6, millis(time.Duration(m.longest.Load()))
}
