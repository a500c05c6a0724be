// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	netnslab "github.com/rehome-net/rehome/netns-lab"
	"github.com/rehome-net/rehome/tcprepair"
)

// ChurnConfig describes the scene "churn": many connections that never rest, over a bad network. The zero value works, but
// for Command.
type ChurnConfig struct {
	// Command is how to run rehome, as in ClusterConfig.
	Command []string
	// Lab is the lab's name; "churn" when empty.
	Lab string
	// Connections is how many there are (20), half of them over IPv6; Migrations how many moves in all (10,000).
	Connections, Migrations int
	// Up and Down impair the client's link. Both zero: 1 % loss, 5 ms jitter and reordering each way.
	Up, Down netnslab.Impairment
	// Pause is the mean time between two moves of a connection.
	Pause time.Duration
	// Report gets progress; may be nil.
	Report io.Writer
	// LogLevel is the agents'.
	LogLevel string
}

func (c ChurnConfig) withDefaults() ChurnConfig {
	if c.Lab == "" {
		c.Lab = "churn"
	}
	if c.Connections == 0 {
		c.Connections = 20
	}
	if c.Migrations == 0 {
		c.Migrations = 10000
	}
	if c.Up == (netnslab.Impairment{}) && c.Down == (netnslab.Impairment{}) {
		c.Up = netnslab.Impairment{Jitter: 5 * time.Millisecond, Loss: 0.01, Reorder: 0.01, Seed: 1}
		c.Down = netnslab.Impairment{Jitter: 5 * time.Millisecond, Loss: 0.01, Reorder: 0.01, Seed: 2}
	}
	if c.Report == nil {
		c.Report = io.Discard
	}
	return c
}

// ChurnResult is what came of it.
type ChurnResult struct {
	Scenario string   `json:"scenario"`
	OK       bool     `json:"ok"`
	Problems []string `json:"problems,omitempty"`
	// Migrations counts the moves, Resumed those that were given up and left their connection where it was.
	Migrations int `json:"migrations"`
	Resumed    int `json:"resumed"`
	// Lost counts connections that ended, Corrupted those of which a byte was wrong.
	Lost         int       `json:"lost"`
	Corrupted    int       `json:"corrupted"`
	Bytes        int64     `json:"bytes"`
	FreezeMicros Quantiles `json:"freezeMicros"`
}

// Churn plays the scene: every connection sends a ramp and checks that it comes back, while it is moved at random.
func Churn(ctx context.Context, cfg ChurnConfig) (_ *ChurnResult, err error) {
	cfg = cfg.withDefaults()
	topo := netnslab.Standard(3)
	topo.Name = cfg.Lab
	topo.Impairments = []netnslab.HostImpairment{{Host: "client", Up: cfg.Up, Down: cfg.Down}}
	cluster, err := StartCluster(ctx, ClusterConfig{Topology: topo, Command: cfg.Command, Root: "/", LogLevel: cfg.LogLevel})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, cluster.Close()) }()
	c := &churn{cfg: cfg, cluster: cluster, result: ChurnResult{Scenario: "churn"}}
	if err := c.play(ctx, topo); err != nil {
		return nil, err
	}
	return &c.result, nil
}

type churn struct {
	cfg     ChurnConfig
	cluster *Cluster
	left    atomic.Int64 // moves still to make

	mu     sync.Mutex
	result ChurnResult
	freeze []int64
}

func (c *churn) play(ctx context.Context, topo netnslab.Topology) error {
	client, err := c.cluster.Lab.Host("client")
	if err != nil {
		return err
	}
	c.left.Store(int64(c.cfg.Migrations))
	vips := []netip.Addr{topo.VIP4(), topo.VIP6()}
	group, gctx := errgroup.WithContext(ctx)
	for i := range c.cfg.Connections {
		conn, err := client.Dial(ctx, "tcp", netip.AddrPortFrom(vips[i%2], EchoPort).String())
		if err != nil {
			return fmt.Errorf("connection %d: %w", i, err)
		}
		tcp, ok := conn.(*net.TCPConn)
		if !ok {
			return fmt.Errorf("%T is no TCP connection", conn)
		}
		group.Go(func() error { return c.connection(gctx, i, tcp) })
	}
	if err := group.Wait(); err != nil {
		return err
	}
	c.result.FreezeMicros = quantiles(c.freeze)
	for _, p := range []struct {
		n    int
		what string
	}{{c.result.Lost, "connections were lost"}, {c.result.Corrupted, "connections were corrupted"}, {c.result.Resumed, "moves did not happen"}} {
		if p.n > 0 {
			c.result.Problems = append(c.result.Problems, fmt.Sprintf("%d %s", p.n, p.what))
		}
	}
	c.result.OK = len(c.result.Problems) == 0
	return nil
}

// connection moves one connection while its ramp goes round.
func (c *churn) connection(ctx context.Context, i int, conn *net.TCPConn) error {
	f, err := flowOf(conn)
	if err != nil {
		return err
	}
	r := startRamp(conn)
	moveErr := c.moves(ctx, rand.New(rand.NewPCG(uint64(i), 7)), f)
	n, err := r.finish(rampWait)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.result.Bytes += n
	switch {
	case errors.Is(err, netnslab.ErrMismatch):
		c.result.Corrupted++
	case err != nil:
		c.result.Lost++
	}
	if err != nil {
		c.result.Problems = append(c.result.Problems, fmt.Sprintf("%v: %v", f, err))
		return nil // a finding, not a failure of the scene
	}
	return moveErr
}

// moves moves the connection until all moves of the scene have been made.
func (c *churn) moves(ctx context.Context, random *rand.Rand, f tcprepair.Flow) error {
	host, err := c.cluster.Find(ctx, f)
	if err != nil {
		return err
	}
	servers := c.cluster.Servers()
	for c.left.Add(-1) >= 0 {
		others := slices.DeleteFunc(slices.Clone(servers), func(s string) bool { return s == host })
		to := others[random.IntN(len(others))]
		m, err := c.cluster.Move(ctx, host, f, to)
		c.mu.Lock()
		switch {
		case err == nil:
			host = to
			c.result.Migrations++
			c.freeze = append(c.freeze, m.GetFreezeMicros())
			if c.result.Migrations%1000 == 0 {
				fmt.Fprintf(c.cfg.Report, "%d moves\n", c.result.Migrations)
			}
		case m != nil:
			c.result.Resumed++
			c.result.Problems = append(c.result.Problems, err.Error())
		}
		c.mu.Unlock()
		if err != nil && m == nil {
			return err
		}
		if c.cfg.Pause > 0 {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(time.Duration(random.Int64N(int64(2 * c.cfg.Pause)))):
			}
		}
	}
	return nil
}
