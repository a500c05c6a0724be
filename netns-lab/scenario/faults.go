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
	"time"

	"github.com/rehome-net/rehome/agent"
	netnslab "github.com/rehome-net/rehome/netns-lab"
	"github.com/rehome-net/rehome/tcprepair"
)

// Victim is a process that a fault kills.
type Victim string

// The processes that take part in a move.
const (
	SourceAgent Victim = "source agent"
	TargetAgent Victim = "target agent"
	EntryAgent  Victim = "entry agent"
	SourceApp   Victim = "source application"
	TargetApp   Victim = "target application"
)

// Victims returns all of them.
func Victims() []Victim { return []Victim{SourceAgent, TargetAgent, EntryAgent, SourceApp, TargetApp} }

// mayEnd reports whether the connection may end with the victim: the kernel ends the connections of a process that dies, and
// a target that dies after the commit was the connection's owner.
func (v Victim) mayEnd() bool { return v == SourceApp || v == TargetApp || v == TargetAgent }

// FaultsConfig describes the scene "faults": processes die, by SIGKILL, at random moments of a move.
type FaultsConfig struct {
	// Command is how to run rehome, as in ClusterConfig.
	Command []string
	// Lab is the lab's name; "faults" when empty.
	Lab string
	// Trials is how many moves there are for each victim; 10 when zero.
	Trials int
	// Victims are those to kill; all when empty.
	Victims []Victim
	// Seed chooses the moments.
	Seed uint64
	// Report gets a line for each trial; may be nil.
	Report io.Writer
	// LogLevel is the agents'.
	LogLevel string
}

// FaultsResult is what came of it.
type FaultsResult struct {
	Scenario string                  `json:"scenario"`
	OK       bool                    `json:"ok"`
	Problems []string                `json:"problems,omitempty"`
	Outcomes map[Victim]FaultOutcome `json:"outcomes"`
}

// FaultOutcome counts what the clients saw when one kind of process died.
type FaultOutcome struct {
	// Moved and Stayed count connections that went on, at the target or at the source; Ended those that were closed or
	// reset; Hung those of which nothing was heard until the deadline; Corrupted those with a wrong byte.
	Moved     int `json:"moved"`
	Stayed    int `json:"stayed"`
	Ended     int `json:"ended"`
	Hung      int `json:"hung"`
	Corrupted int `json:"corrupted"`
	// LongestSilenceMillis is the longest time without a byte of any connection that went on.
	LongestSilenceMillis float64 `json:"longestSilenceMillis"`
}

const (
	// faultLimit is the agents' limit for a move in this scene, so that deadlines come soon.
	faultLimit = time.Second
	// faultDeadline is when a connection that is not heard of counts as hung: limit, grace and a start of a process.
	faultDeadline = 12 * time.Second
	// restartPause is how long a service manager waits.
	restartPause = 100 * time.Millisecond
)

// Faults plays the scene. Every connection sends a ramp and checks that it comes back, before, during and after.
func Faults(ctx context.Context, cfg FaultsConfig) (_ *FaultsResult, err error) {
	if cfg.Lab == "" {
		cfg.Lab = "faults"
	}
	if cfg.Trials == 0 {
		cfg.Trials = 10
	}
	if len(cfg.Victims) == 0 {
		cfg.Victims = Victims()
	}
	if cfg.Report == nil {
		cfg.Report = io.Discard
	}
	topo := netnslab.Standard(3)
	topo.Name = cfg.Lab
	cluster, err := StartCluster(ctx, ClusterConfig{
		Topology: topo, Command: cfg.Command, Root: "/", LogLevel: cfg.LogLevel,
		Adjust: func(c *agent.Config) { c.Migration.Limit = faultLimit },
	})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, cluster.Close()) }()
	f := &faults{
		cfg: cfg, cluster: cluster, vip: topo.VIP4(), random: rand.New(rand.NewPCG(cfg.Seed, 1)),
		result: FaultsResult{Scenario: "faults", Outcomes: make(map[Victim]FaultOutcome)},
	}
	for _, v := range cfg.Victims {
		for trial := range cfg.Trials {
			if err := f.trial(ctx, v, trial); err != nil {
				return nil, fmt.Errorf("%s, trial %d: %w", v, trial, err)
			}
		}
	}
	f.result.OK = len(f.result.Problems) == 0
	return &f.result, nil
}

type faults struct {
	cfg     FaultsConfig
	cluster *Cluster
	vip     netip.Addr
	random  *rand.Rand
	result  FaultsResult
}

// trial moves one connection and kills the victim meanwhile.
func (f *faults) trial(ctx context.Context, v Victim, trial int) error {
	conn, flow, source, err := f.connect(ctx)
	if err != nil {
		return err
	}
	servers := f.cluster.Servers()
	target := servers[f.random.IntN(len(servers))]
	for target == source {
		target = servers[f.random.IntN(len(servers))]
	}
	ramp := startRamp(conn)
	// There and back first: the agents' connections stand then, and it shows how long a move takes at present.
	begin := time.Now()
	for _, hop := range [][2]string{{source, target}, {target, source}} {
		if _, err := f.cluster.Move(ctx, hop[0], flow, hop[1]); err != nil {
			return err
		}
	}
	delay := time.Duration(f.random.Int64N(int64(time.Since(begin))))
	moved := make(chan error, 1)
	go func() {
		mctx, cancel := context.WithTimeout(ctx, faultDeadline)
		defer cancel()
		_, err := f.cluster.Move(mctx, source, flow, target)
		moved <- err
	}()
	time.Sleep(delay)
	if err := f.kill(ctx, v, source, target); err != nil {
		return err
	}
	moveErr := <-moved
	f.judge(ctx, v, trial, ramp, flow, source, target, delay, moveErr)
	return nil
}

func (f *faults) connect(ctx context.Context) (*net.TCPConn, tcprepair.Flow, string, error) {
	client, err := f.cluster.Lab.Host("client")
	if err != nil {
		return nil, tcprepair.Flow{}, "", err
	}
	conn, err := client.Dial(ctx, "tcp", netip.AddrPortFrom(f.vip, EchoPort).String())
	if err != nil {
		return nil, tcprepair.Flow{}, "", err
	}
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return nil, tcprepair.Flow{}, "", fmt.Errorf("%T is no TCP connection", conn)
	}
	flow, err := flowOf(tcp)
	if err != nil {
		return nil, flow, "", err
	}
	source, err := f.cluster.Find(ctx, flow)
	return tcp, flow, source, err
}

// kill ends the victim and starts it again, as a service manager does.
func (f *faults) kill(ctx context.Context, v Victim, source, target string) error {
	host := map[Victim]string{SourceAgent: source, SourceApp: source, TargetAgent: target, TargetApp: target, EntryAgent: "entry"}[v]
	if v == SourceApp || v == TargetApp {
		if err := f.cluster.KillServer(host); err != nil {
			return err
		}
		time.Sleep(restartPause)
		return f.cluster.StartServer(ctx, host)
	}
	if err := f.cluster.KillAgent(host); err != nil {
		return err
	}
	time.Sleep(restartPause)
	if err := f.cluster.StartAgent(ctx, host); err != nil {
		return err
	}
	if host == "entry" {
		return nil
	}
	return f.cluster.awaitRegistered(ctx, host)
}

// judge finds out what has become of the connection.
func (f *faults) judge(
	ctx context.Context, v Victim, trial int, ramp *rampEcho, flow tcprepair.Flow, source, target string, delay time.Duration, moveErr error,
) {
	o := f.result.Outcomes[v]
	what := "went on"
	alive := ramp.awaitProgress(faultDeadline)
	host := ""
	if alive {
		host, _ = f.cluster.Find(ctx, flow)
	}
	wait := rampWait
	if !alive {
		wait = time.Second
	}
	_, err := ramp.finish(wait)
	switch {
	case errors.Is(err, netnslab.ErrMismatch):
		o.Corrupted++
		what = "corrupted"
	case !alive && err == nil:
		o.Hung++ // it came back, but too late
		what = "hung"
	case alive && err == nil && host == target:
		o.Moved++
	case alive && err == nil:
		o.Stayed++
		what = "stayed"
	case err != nil && !isTimeout(err):
		o.Ended++
		what = "ended"
	default:
		o.Hung++
		what = "hung"
	}
	if what == "went on" || what == "stayed" {
		o.LongestSilenceMillis = max(o.LongestSilenceMillis, millis(ramp.longest()))
	}
	f.result.Outcomes[v] = o
	line := fmt.Sprintf("%s %2d: killed after %v, %s -> %s: %s at %q (move: %v, connection: %v)", v, trial, delay, source, target, what, host, moveErr, err)
	fmt.Fprintln(f.cfg.Report, line)
	if what == "corrupted" || what == "hung" || what == "ended" && !v.mayEnd() {
		f.result.Problems = append(f.result.Problems, line)
		for _, h := range []string{source, target, "entry"} {
			fmt.Fprintf(f.cfg.Report, "--- %s\n%s", h, f.cluster.Logs(h))
		}
	}
}

func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout()
}
