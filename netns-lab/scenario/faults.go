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
	// silence is the longest time without a byte of the last connection, in milliseconds.
	silence float64
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
	if err := f.end(v, source, target); err != nil {
		return err
	}
	time.Sleep(restartPause)
	return f.revive(ctx, v, source, target)
}

// host returns where a victim lives.
func (v Victim) host(source, target string) string {
	return map[Victim]string{SourceAgent: source, SourceApp: source, TargetAgent: target, TargetApp: target, EntryAgent: "entry"}[v]
}

func (f *faults) end(v Victim, source, target string) error {
	if v == SourceApp || v == TargetApp {
		return f.cluster.KillServer(v.host(source, target))
	}
	return f.cluster.KillAgent(v.host(source, target))
}

func (f *faults) revive(ctx context.Context, v Victim, source, target string) error {
	host := v.host(source, target)
	if v == SourceApp || v == TargetApp {
		return f.cluster.StartServer(ctx, host)
	}
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
	name := fmt.Sprintf("%s %2d: killed after %v", v, trial, delay)
	switch what := f.judgeAs(ctx, name, v.mayEnd(), ramp, flow, source, target, moveErr); what {
	case "moved":
		o.Moved++
	case "stayed":
		o.Stayed++
	case "ended":
		o.Ended++
	case "corrupted":
		o.Corrupted++
	default:
		o.Hung++
	}
	o.LongestSilenceMillis = max(o.LongestSilenceMillis, f.silence)
	f.result.Outcomes[v] = o
}

// judgeAs says in one word what has become of the connection. A connection that ended although it must not is a problem.
func (f *faults) judgeAs(
	ctx context.Context, name string, mayEnd bool, ramp *rampEcho, flow tcprepair.Flow, source, target string, moveErr error,
) string {
	f.silence = 0
	what := "moved"
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
		what = "corrupted"
	case !alive && err == nil:
		what = "hung" // it came back, but too late
	case alive && err == nil && host == target:
	case alive && err == nil:
		what = "stayed"
	case err != nil && !isTimeout(err):
		what = "ended"
	default:
		what = "hung"
	}
	if what == "moved" || what == "stayed" {
		f.silence = millis(ramp.longest())
	}
	line := fmt.Sprintf("%s, %s -> %s: %s at %q, silent for %.0f ms (move: %v, connection: %v)", name, source, target, what, host, f.silence, moveErr, err)
	fmt.Fprintln(f.cfg.Report, line)
	if what == "corrupted" || what == "hung" || what == "ended" && !mayEnd {
		f.result.Problems = append(f.result.Problems, line)
		for _, h := range []string{source, target, "entry"} {
			fmt.Fprintf(f.cfg.Report, "--- %s\n%s", h, f.cluster.Logs(h))
		}
	}
	return what
}

func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout()
}
