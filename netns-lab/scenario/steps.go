// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/agent"
	netnslab "github.com/rehome-net/rehome/netns-lab"
)

// FaultVariable is the environment variable that tells agents built with the tag faults which file says what to do wrong.
const FaultVariable = "REHOME_FAULT"

// StepTrial is one move with one fault at one place: either a process dies at a step, or a frame does not arrive as it should.
type StepTrial struct {
	// Role and Step are where the agent that takes the step is stopped while Victim is killed: before the step, which is a migration.Verb of
	// the role source or target; or for the role entry before a frame is answered ("Commit"), or before the answer is sent ("Commit answered").
	Role, Step string
	Victim     Victim
	// Frame is the kind of a frame that Role sends, and How what happens to it: lost, doubled, or for how long it is late ("300ms").
	Frame, How string
}

func (t StepTrial) String() string {
	if t.Frame != "" {
		return fmt.Sprintf("%s of the %s %s", t.Frame, t.Role, t.How)
	}
	return fmt.Sprintf("%s killed at %s of the %s", t.Victim, t.Step, t.Role)
}

// host returns where the role is played.
func (t StepTrial) host(source, target string) string {
	return map[string]string{"source": source, "target": target, "entry": "entry"}[t.Role]
}

// fault is the line that the agent reads.
func (t StepTrial) fault(source, target string) string {
	if t.Frame != "" {
		return fmt.Sprintf("frame %s %s %s", t.host(source, target), t.Frame, t.How)
	}
	return fmt.Sprintf("stop %s %s %s", t.host(source, target), t.Role, t.Step)
}

// StepTrials are all there are for a move of a connection with little State: every step with every victim, every frame with every way.
func StepTrials() []StepTrial {
	steps := []struct{ role, steps string }{
		{"source", "send-offer send-lease ask-export freeze send-transfer discard send-held tell-migrated finish"},
		{"entry", "Lease,Lease answered,Commit,Commit answered"},
		{"target", "reserve restore send-commit thaw activate-app send-committed release finish"},
	}
	frames := []struct {
		role, kinds string
		local       bool
	}{
		{"source", "Offer Lease Transfer Held", false},
		{"target", "Accept Commit Committed", false},
		{"entry", "Leased Owner", false},
		{"source", "Export Migrated", true},
		{"target", "Import Activate", true},
	}
	var all []StepTrial
	for _, s := range steps {
		list := strings.Fields(s.steps)
		if strings.Contains(s.steps, ",") {
			list = strings.Split(s.steps, ",")
		}
		for _, step := range list {
			for _, v := range Victims() {
				all = append(all, StepTrial{Role: s.role, Step: step, Victim: v})
			}
		}
	}
	for _, f := range frames {
		for _, kind := range strings.Fields(f.kinds) {
			for _, how := range []string{"lost", "doubled", "300ms"} {
				if f.local && how == "lost" {
					continue // a UNIX socket loses nothing but with one of its ends, and the steps have that
				}
				all = append(all, StepTrial{Role: f.role, Frame: kind, How: how})
			}
		}
	}
	return all
}

// StepsConfig describes the scene "steps": processes die at named steps of a move, frames are lost, doubled or late.
type StepsConfig struct {
	// Command is how to run a rehome that was built with the tag faults.
	Command []string
	// Lab is the lab's name; "steps" when empty.
	Lab string
	// Trials are what to do; StepTrials when empty.
	Trials []StepTrial
	// Report gets a line for each trial; may be nil.
	Report io.Writer
}

// Steps plays the scene, and returns what became of the connection in each trial, and the problems. The variable FaultVariable of this process must
// name a file that can be written.
func Steps(ctx context.Context, cfg StepsConfig) (outcomes map[StepTrial]string, problems []string, err error) {
	if cfg.Lab == "" {
		cfg.Lab = "steps"
	}
	if len(cfg.Trials) == 0 {
		cfg.Trials = StepTrials()
	}
	if cfg.Report == nil {
		cfg.Report = io.Discard
	}
	if os.Getenv(FaultVariable) == "" {
		return nil, nil, fmt.Errorf("%s is not set", FaultVariable)
	}
	topo := netnslab.Standard(3)
	topo.Name = cfg.Lab
	cluster, err := StartCluster(ctx, ClusterConfig{
		Topology: topo, Command: cfg.Command, Root: "/", Adjust: func(c *agent.Config) { c.Migration.Limit = faultLimit },
	})
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, cluster.Close()) }()
	f := &faults{
		cfg: FaultsConfig{Report: cfg.Report}, cluster: cluster, vip: topo.VIP4(), random: rand.New(rand.NewPCG(1, 1)),
		result: FaultsResult{Outcomes: make(map[Victim]FaultOutcome)},
	}
	outcomes = make(map[StepTrial]string)
	for _, t := range cfg.Trials {
		if outcomes[t], err = f.step(ctx, t); err != nil {
			return outcomes, f.result.Problems, fmt.Errorf("%v: %w", t, err)
		}
	}
	return outcomes, f.result.Problems, nil
}

// step is one trial.
func (f *faults) step(ctx context.Context, t StepTrial) (string, error) {
	conn, flow, source, err := f.connect(ctx)
	if err != nil {
		return "", err
	}
	servers := f.cluster.Servers()
	target := servers[(slices.Index(servers, source)+1)%len(servers)]
	ramp := startRamp(conn)
	// The connections of the agents stand after a first move there and back.
	for _, hop := range [][2]string{{source, target}, {target, source}} {
		if _, err := f.cluster.Move(ctx, hop[0], flow, hop[1]); err != nil {
			return "", err
		}
	}
	file := os.Getenv(FaultVariable)
	if err := writeAtOnce(file, t.fault(source, target)); err != nil {
		return "", err
	}
	moved := make(chan error, 1)
	go func() {
		mctx, cancel := context.WithTimeout(ctx, faultDeadline)
		defer cancel()
		_, err := f.cluster.Move(mctx, source, flow, target)
		moved <- err
	}()
	if err := awaitRemoved(ctx, file); err != nil {
		return "", errors.Join(err, os.Remove(file))
	}
	if t.Frame == "" {
		if err := f.killAt(ctx, t, source, target); err != nil {
			return "", err
		}
	}
	moveErr := <-moved
	return f.judgeAs(ctx, t.String(), t.Frame == "" && t.Victim.mayEnd(), ramp, flow, source, target, moveErr), nil
}

// writeAtOnce makes a file that is never seen half written.
func writeAtOnce(path, text string) error {
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// awaitRemoved waits until an agent has taken the fault.
func awaitRemoved(ctx context.Context, path string) error {
	for end := time.Now().Add(faultDeadline); ; {
		_, err := os.Stat(path)
		switch {
		case errors.Is(err, os.ErrNotExist):
			return nil
		case time.Now().After(end):
			return errors.New("the move never came there")
		case ctx.Err() != nil:
			return ctx.Err()
		}
		time.Sleep(time.Millisecond)
	}
}

// killAt kills the victim while the agent is stopped, has the agent go on, and starts the victim again.
func (f *faults) killAt(ctx context.Context, t StepTrial, source, target string) error {
	stopped := f.cluster.agents[t.host(source, target)]
	if err := awaitStopped(ctx, stopped.cmd.Process.Pid); err != nil {
		return err
	}
	if err := f.end(t.Victim, source, target); err != nil {
		return err
	}
	select {
	case <-stopped.done: // it was the victim
	default:
		if err := stopped.cmd.Process.Signal(unix.SIGCONT); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return err
		}
	}
	time.Sleep(restartPause)
	return f.revive(ctx, t.Victim, source, target)
}

// awaitStopped waits until all threads of a process are stopped.
func awaitStopped(ctx context.Context, pid int) error {
	for ctx.Err() == nil {
		files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
		if err != nil || len(files) == 0 {
			return fmt.Errorf("process %d is gone", pid)
		}
		runs := slices.ContainsFunc(files, func(path string) bool {
			b, err := os.ReadFile(path)
			_, rest, _ := strings.Cut(string(b), ") ")
			return err == nil && !strings.HasPrefix(rest, "T")
		})
		if !runs {
			return nil
		}
		time.Sleep(time.Millisecond)
	}
	return ctx.Err()
}
