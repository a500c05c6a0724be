// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/rehome-net/rehome/agent"
	"github.com/rehome-net/rehome/agent/api"
	"github.com/rehome-net/rehome/tcprepair"
)

// mover is what migrate and drain have in common.
type mover struct {
	control
	output      outputFormat
	to, service string
	concurrency int
	timeout     time.Duration
	verbose     bool
	wait        bool // of a drain: until connections that cannot move have ended
}

func (m *mover) register(cmd *cobra.Command) {
	m.control.register(cmd)
	m.output.register(cmd)
	f := cmd.Flags()
	f.StringVar(&m.to, "to", "", "host to move to (default: the service's other servers in turn)")
	f.IntVar(&m.concurrency, "concurrency", 0, "moves in flight at a time (default: the agent's setting)")
	f.DurationVar(&m.timeout, "timeout", 0, "time for everything; what has not moved then stays (default: none)")
	f.BoolVarP(&m.verbose, "verbose", "v", false, "a line for each connection")
	complete(cmd, "to", m.completePeer)
}

func newMigrate() *cobra.Command {
	m := &mover{}
	var all bool
	var pid int32
	var lazy bool
	cmd := &cobra.Command{
		Use:   "migrate {FLOW | --all | --process PID | --service NAME} [--to HOST]",
		Short: "Move live connections, or a whole process with its connections, to another host",
		Long: `Move live connections of this host to another one. FLOW is client:port-server:port as "rehome status --flows" shows it.

With --process, or --service without --all, a whole process moves (CRIU 4.2 or newer is needed): with all processes that descend from it,
its memory, its connections and its listeners. --service names the process that listens for that service.
With --lazy, the process runs at the target before its memory is there, which follows: a shorter pause, but until all of it has followed (the
command waits for that) a failure of either host or of the network between them takes the process with it, and its clients get a RST.

What cannot be moved goes on where it was; the reason is printed and the exit code is 1.`,
		Example: `  rehome migrate 192.0.2.7:40312-198.51.100.1:443 --to web-2
  rehome migrate --all --to web-2 --service files
  rehome migrate --process 4711 --to web-2
  rehome migrate --service redis --to web-2`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: m.completeFlow,
		RunE: func(cmd *cobra.Command, args []string) error {
			req := &api.MoveRequest{Process: pid, Lazy: lazy, Whole: m.service != "" && !all && len(args) == 0 && pid == 0}
			given := 0
			for _, yes := range []bool{len(args) == 1, all, pid != 0, req.GetWhole()} {
				if yes {
					given++
				}
			}
			switch {
			case given != 1:
				return errors.New("migrate: give one of FLOW, --all, --process PID and --service NAME")
			case pid < 0:
				return fmt.Errorf("migrate: --process %d is no process", pid)
			case m.service != "" && !all && !req.GetWhole():
				return errors.New("migrate: --service goes with --all, or alone")
			case lazy && pid == 0 && !req.GetWhole():
				return errors.New("migrate: --lazy goes with --process, or with --service without --all")
			}
			if len(args) == 1 {
				if _, err := tcprepair.ParseFlow(args[0]); err != nil {
					return fmt.Errorf("migrate: %w", err)
				}
				req.Flow = args[0]
				m.verbose = true
			}
			return m.run(cmd, req)
		},
	}
	m.register(cmd)
	cmd.Flags().BoolVar(&all, "all", false, "every connection that can be moved")
	cmd.Flags().Int32Var(&pid, "process", 0, "a process of this host, by its number")
	cmd.Flags().BoolVar(&lazy, "lazy", false, "of a process: its memory follows when it runs at the target")
	cmd.Flags().StringVar(&m.service, "service", "", "the process that listens for this service; with --all: only connections of this service")
	complete(cmd, "service", m.completeService)
	return cmd
}

func newDrain() *cobra.Command {
	m := &mover{}
	cmd := &cobra.Command{
		Use:   "drain [--to HOST]",
		Short: "Empty this host: move every connection away and take no new ones",
		Long: `Empty this host before a reboot: its services' entries send it no new connections, other hosts move none to it, and
every live connection is moved away. "rehome undrain" takes it back.

The exit code is 1 if a connection could not be moved; it goes on here, and the reason is printed. Connections of servers that do not
link package handoff cannot move and go on here, too: how many there are is printed, and with --wait the command returns when they have ended.`,
		Example: `  rehome drain
  rehome drain --wait --timeout 15m`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return m.run(cmd, &api.MoveRequest{Drain: true})
		},
	}
	m.register(cmd)
	cmd.Flags().BoolVar(&m.wait, "wait", false, "return when no connection is left, also those that cannot move; within --timeout, if it is given")
	return cmd
}

func newUndrain() *cobra.Command {
	c := &control{}
	cmd := &cobra.Command{
		Use: "undrain", Short: "Take connections again after a drain", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := c.dial()
			if err != nil {
				return err
			}
			defer client.Close() //nolint:errcheck // nothing was written
			_, err = client.Undrain(cmd.Context(), &api.UndrainRequest{})
			return c.callError(err)
		},
	}
	c.register(cmd)
	return cmd
}

func newAbort() *cobra.Command {
	c := &control{}
	cmd := &cobra.Command{
		Use:               "abort [FLOW]",
		Short:             "Give up moves in flight; their connections go on here",
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: c.completeMigration,
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := c.dial()
			if err != nil {
				return err
			}
			defer client.Close() //nolint:errcheck // nothing was written
			req := &api.AbortRequest{}
			if len(args) == 1 {
				req.Flow = args[0]
			}
			r, err := client.Abort(cmd.Context(), req)
			if err != nil {
				return c.callError(err)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%d aborted\n", r.GetAborted())
			return nil
		},
	}
	c.register(cmd)
	return cmd
}

// run asks the agent for a move and reports its progress.
func (m *mover) run(cmd *cobra.Command, req *api.MoveRequest) error {
	if m.concurrency < 0 || m.timeout < 0 {
		return errors.New("--concurrency and --timeout cannot be negative")
	}
	req.To, req.Service = m.to, m.service
	req.Concurrency, req.TimeoutMicros = uint32(m.concurrency), m.timeout.Microseconds()
	began := time.Now()
	client, err := m.dial()
	if err != nil {
		return err
	}
	defer client.Close() //nolint:errcheck // nothing was written
	stream, err := client.Move(cmd.Context(), req)
	if err != nil {
		return m.callError(err)
	}
	p := &progress{out: cmd.OutOrStdout(), log: cmd.ErrOrStderr(), json: m.output == "json", verbose: m.verbose}
	for {
		ev, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			if req.GetDrain() && p.summary != nil && p.summary.GetError() == "" {
				if p.left, err = m.stay(cmd, client, began); err != nil {
					return err
				}
			}
			return p.end()
		}
		if err != nil {
			if errors.Is(cmd.Context().Err(), context.Canceled) {
				return &exitError{exitFailed, errors.New("interrupted: no further connections are moved; those in flight are seen to their end")}
			}
			return m.callError(err)
		}
		p.event(ev)
	}
}

// progress prints what becomes of a move.
type progress struct {
	out, log      io.Writer
	json, verbose bool
	total, done   uint32
	shown         time.Time
	moves         []moveResult
	processes     []processResult
	summary       *api.Summary
	left          uint32 // of a drain: connections that are still here
}

// moveResult is one connection in the output.
type moveResult struct {
	Flow           string `json:"flow"`
	To             string `json:"to"`
	Outcome        string `json:"outcome"`
	Error          string `json:"error,omitempty"`
	FreezeMicros   int64  `json:"freezeMicros"`
	TotalMicros    int64  `json:"totalMicros"`
	SnapshotMicros int64  `json:"snapshotMicros"`
	HeldPackets    uint32 `json:"heldPackets"`
	StateBytes     uint64 `json:"stateBytes"`
	SnapshotBytes  uint64 `json:"snapshotBytes"`
}

// moveSummary is the whole output in JSON.
type moveSummary struct {
	Moved              uint32       `json:"moved"`
	Failed             uint32       `json:"failed"`
	Lost               uint32       `json:"lost"`
	Gone               uint32       `json:"gone"`
	TotalMicros        int64        `json:"totalMicros"`
	FreezeMedianMicros int64        `json:"freezeMedianMicros"`
	FreezeP99Micros    int64        `json:"freezeP99Micros"`
	Error              string       `json:"error,omitempty"`
	Left               uint32       `json:"left,omitempty"` // of a drain: connections that are still here
	Connections        []moveResult `json:"connections"`
	// Processes is there when whole processes were to be moved.
	Processes []processResult `json:"processes,omitempty"`
}

func (p *progress) event(ev *api.MoveEvent) {
	switch {
	case ev.GetPlanned() != nil:
		p.total = ev.GetPlanned().GetTotal()
	case ev.GetMoved() != nil:
		p.moved(ev.GetMoved())
	case ev.GetProcess() != nil:
		p.process(ev.GetProcess())
	case ev.GetSummary() != nil:
		p.summary = ev.GetSummary()
	}
}

func (p *progress) moved(m *api.Moved) {
	p.done++
	r := moveResult{
		Flow: m.GetFlow(), To: m.GetTo(), Outcome: m.GetOutcome(), Error: m.GetError(),
		FreezeMicros: m.GetFreezeMicros(), TotalMicros: m.GetTotalMicros(), SnapshotMicros: m.GetSnapshotMicros(),
		HeldPackets: m.GetHeldPackets(), StateBytes: m.GetStateBytes(), SnapshotBytes: m.GetSnapshotBytes(),
	}
	switch {
	case p.json:
		p.moves = append(p.moves, r)
	case r.Outcome != agent.OutcomeMoved:
		fmt.Fprintf(p.log, "%s  %s: %s\n", r.Flow, inWords(r.Outcome), r.Error)
	case p.verbose:
		fmt.Fprintf(p.out, "%s  moved to %s  freeze %d us  total %d us  held %d packets\n",
			r.Flow, r.To, r.FreezeMicros, r.TotalMicros, r.HeldPackets)
	case time.Since(p.shown) > time.Second:
		p.shown = time.Now()
		fmt.Fprintf(p.log, "%d of %d\n", p.done, p.total)
	}
}

// inWords returns an outcome as an operator would say it.
func inWords(outcome string) string {
	switch outcome {
	case agent.OutcomeResumed:
		return "stays here"
	case agent.OutcomeLost:
		return "lost"
	case agent.OutcomeGone:
		return "ended by itself"
	}
	return outcome
}

// end prints the summary and returns an error unless everything was moved.
func (p *progress) end() error {
	s := p.summary
	if s == nil {
		return &exitError{exitFailed, errors.New("the agent ended before the move was over: ask \"rehome status\" what is left")}
	}
	if p.json {
		enc := json.NewEncoder(p.out)
		enc.SetIndent("", "  ")
		if p.moves == nil {
			p.moves = []moveResult{}
		}
		err := enc.Encode(moveSummary{
			Moved: s.GetMoved(), Failed: s.GetFailed(), Lost: s.GetLost(), Gone: s.GetGone(), TotalMicros: s.GetTotalMicros(),
			FreezeMedianMicros: s.GetFreezeMedianMicros(), FreezeP99Micros: s.GetFreezeP99Micros(),
			Error: s.GetError(), Left: p.left, Connections: p.moves, Processes: p.processes,
		})
		if err != nil {
			return &exitError{exitFailed, err}
		}
	} else if len(p.processes) == 0 && (p.done > 0 || s.GetError() == "") {
		fmt.Fprintf(p.out, "%d moved, %d stayed, %d lost, %d ended by themselves in %v; freeze median %d us, p99 %d us\n",
			s.GetMoved(), s.GetFailed(), s.GetLost(), s.GetGone(),
			(time.Duration(s.GetTotalMicros()) * time.Microsecond).Round(time.Millisecond),
			s.GetFreezeMedianMicros(), s.GetFreezeP99Micros())
	}
	switch {
	case s.GetError() != "":
		return &exitError{exitFailed, errors.New(s.GetError())}
	case len(p.processes) > 0 && s.GetMoved() == 0:
		return &exitError{exitFailed, nil} // its line has said why
	case s.GetFailed() > 0 || s.GetLost() > 0:
		return &exitError{exitFailed, fmt.Errorf("%d connections did not move", s.GetFailed()+s.GetLost())}
	}
	return nil
}
