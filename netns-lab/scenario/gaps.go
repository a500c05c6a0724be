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
	"runtime"
	"runtime/debug"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	netnslab "github.com/rehome-net/rehome/netns-lab"
	"github.com/rehome-net/rehome/tcprepair"
)

// GapsConfig describes the scene "gaps": one client measures how long it waits because its connection moves.
type GapsConfig struct {
	// Command is how to run rehome, as in ClusterConfig.
	Command []string
	// Lab is the lab's name; "gaps" when empty.
	Lab string
	// Migrations is how often the connection moves; 1,000 when zero.
	Migrations int
	// Pause is the time between two moves; 5 ms when zero.
	Pause time.Duration
	// Think is how long the client waits between an answer and its next question. Zero asks without a pause: client and server then keep
	// a processor each busy, and on a machine with two of them everything that a move does takes time from its own measurement.
	Think time.Duration
	// LogLevel is the agents'.
	LogLevel string
}

// GapsResult is what came of it.
type GapsResult struct {
	Scenario string `json:"scenario"`
	OK       bool   `json:"ok"`
	// Idle are response times without moves, in microseconds; Gap the longest response time around each move.
	Idle       Quantiles `json:"idleMicros"`
	Gap        Quantiles `json:"gapMicros"`
	Freeze     Quantiles `json:"freezeMicros"`
	Snapshot   Quantiles `json:"snapshotMicros"`
	Total      Quantiles `json:"totalMicros"`
	Migrations int       `json:"migrations"`
	// Retransmitted counts the segments that the client and all servers sent again, whatever the connection.
	Retransmitted int `json:"retransmitted"`
}

// Gaps plays the scene: a client sends a line, waits for the echo and sends the next.
func Gaps(ctx context.Context, cfg GapsConfig) (_ *GapsResult, err error) {
	if cfg.Lab == "" {
		cfg.Lab = "gaps"
	}
	if cfg.Migrations == 0 {
		cfg.Migrations = 1000
	}
	if cfg.Pause == 0 {
		cfg.Pause = 5 * time.Millisecond
	}
	topo := netnslab.Standard(3)
	topo.Name = cfg.Lab
	cluster, err := StartCluster(ctx, ClusterConfig{Topology: topo, Command: cfg.Command, Root: "/", LogLevel: cfg.LogLevel, Serve: []string{"--calm"}})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, cluster.Close()) }()
	client, err := cluster.Lab.Host("client")
	if err != nil {
		return nil, err
	}
	conn, flow, err := dialEcho(ctx, client, topo.VIP4())
	if err != nil {
		return nil, err
	}
	before, err := cluster.retransmitted()
	if err != nil {
		return nil, err
	}
	p := startPinger(conn, cfg.Think)
	r, err := measureGaps(ctx, cfg, cluster, flow, p)
	if err := errors.Join(err, p.stop()); err != nil {
		return nil, err
	}
	after, err := cluster.retransmitted()
	if err != nil {
		return nil, err
	}
	r.Retransmitted = after - before
	r.OK = r.Migrations == cfg.Migrations
	return r, nil
}

// dialEcho connects a client to the echo service.
func dialEcho(ctx context.Context, client *netnslab.Host, vip netip.Addr) (*net.TCPConn, tcprepair.Flow, error) {
	conn, err := client.Dial(ctx, "tcp", netip.AddrPortFrom(vip, EchoPort).String())
	if err != nil {
		return nil, tcprepair.Flow{}, err
	}
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return nil, tcprepair.Flow{}, fmt.Errorf("%T is no TCP connection", conn)
	}
	f, err := flowOf(tcp)
	return tcp, f, err
}

func measureGaps(ctx context.Context, cfg GapsConfig, cluster *Cluster, flow tcprepair.Flow, p *pinger) (*GapsResult, error) {
	r := &GapsResult{Scenario: "gaps"}
	host, err := cluster.Find(ctx, flow)
	if err != nil {
		return nil, err
	}
	servers := cluster.Servers()
	// The client's own garbage is not what is measured.
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	var idle, gap, freeze, snapshot, total []int64
	for range cfg.Migrations {
		p.longest.Store(0)
		time.Sleep(cfg.Pause)
		idle = append(idle, time.Duration(p.longest.Swap(0)).Microseconds())
		to := servers[(slices.Index(servers, host)+1)%len(servers)]
		m, err := cluster.Move(ctx, host, flow, to)
		if err != nil {
			return nil, err
		}
		host = to
		p.await()
		gap = append(gap, time.Duration(p.longest.Swap(0)).Microseconds())
		freeze = append(freeze, m.GetFreezeMicros())
		snapshot = append(snapshot, m.GetSnapshotMicros())
		total = append(total, m.GetTotalMicros())
		r.Migrations++
	}
	r.Idle, r.Gap, r.Freeze, r.Snapshot, r.Total = quantiles(idle), quantiles(gap), quantiles(freeze), quantiles(snapshot), quantiles(total)
	return r, nil
}

// pingWait bounds the wait for one answer.
const pingWait = 10 * time.Second

// pinger plays ping-pong and remembers the longest response time.
type pinger struct {
	conn    *net.TCPConn
	think   time.Duration
	longest atomic.Int64 // in nanoseconds
	rounds  atomic.Int64
	ending  atomic.Bool
	done    chan error
}

func startPinger(conn *net.TCPConn, think time.Duration) *pinger {
	p := &pinger{conn: conn, think: think, done: make(chan error, 1)}
	go func() { p.done <- p.run() }()
	return p
}

// run asks and waits in system calls on a thread of its own, as a program in C would: how soon this process's runtime hears of an answer is
// not what is measured.
func (p *pinger) run() error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	file, err := p.conn.File() // which makes the socket a blocking one
	if err != nil {
		return err
	}
	defer file.Close() //nolint:errcheck // p.conn ends the connection
	fd := int(file.Fd())
	limit := unix.NsecToTimeval(pingWait.Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit); err != nil {
		return err
	}
	line := []byte("how long does it take?\n")
	buf := make([]byte, len(line))
	for !p.ending.Load() {
		begin := time.Now()
		if err := ping(fd, line, buf); err != nil {
			return err
		}
		if d := int64(time.Since(begin)); d > p.longest.Load() {
			p.longest.Store(d)
		}
		p.rounds.Add(1)
		if p.think > 0 {
			time.Sleep(p.think)
		}
	}
	return nil
}

// ping writes a line and waits for as much in answer.
func ping(fd int, line, answer []byte) error {
	if _, err := unix.Write(fd, line); err != nil {
		return os.NewSyscallError("write", err)
	}
	for len(answer) > 0 {
		n, err := unix.Read(fd, answer)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return os.NewSyscallError("read", err)
		case n == 0:
			return io.ErrUnexpectedEOF
		default:
			answer = answer[n:]
		}
	}
	return nil
}

// await waits for the answers to a question that was asked before, and to one more.
func (p *pinger) await() {
	want := p.rounds.Load() + 2
	for deadline := time.Now().Add(rampWait); p.rounds.Load() < want && time.Now().Before(deadline) && len(p.done) == 0; {
		time.Sleep(100 * time.Microsecond)
	}
}

func (p *pinger) stop() error {
	p.ending.Store(true)
	return errors.Join(<-p.done, p.conn.Close())
}
