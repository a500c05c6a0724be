// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/rehome-net/rehome/handoff/calm"
	netnslab "github.com/rehome-net/rehome/netns-lab"
	"github.com/rehome-net/rehome/netns-lab/demo"
	"github.com/rehome-net/rehome/netns-lab/scenario"
)

// standingLab is the name of the lab that "lab up" builds unless it is given another.
const standingLab = "lab"

func newLab() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "lab",
		Short: "Try rehome in network namespaces on this machine",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if os.Geteuid() != 0 && cmd.Name() != "lab" && cmd.Name() != "list" && cmd.Name() != "serve" {
				return &exitError{exitFailed, errors.New("labs are made of network namespaces, which needs root")}
			}
			return nil
		},
		Long: `A lab is a network of namespaces on this machine: a client, an entry and servers on one switch, with the agent on each
host and a demo server on each server. "lab run" plays a scenario in a lab of its own; "lab up" leaves one standing.`,
	}
	cmd.AddCommand(newLabList(), newLabRun(), newLabUp(), newLabExec(), newLabRestart(), newLabDown(), newLabServe())
	return cmd
}

func newLabList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the scenarios, and the labs that stand", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			out := cmd.OutOrStdout()
			fmt.Fprintln(out, "scenarios:")
			for _, s := range scenarios() {
				fmt.Fprintf(out, "  %-16s %s\n", s.name, s.about)
			}
			labs, err := netnslab.List()
			if err != nil {
				return &exitError{exitFailed, err}
			}
			fmt.Fprintln(out, "standing labs:")
			for _, l := range labs {
				fmt.Fprintln(out, "  "+l)
			}
			remains, err := netnslab.Remains()
			if err != nil {
				return &exitError{exitFailed, err}
			}
			for _, l := range remains {
				fmt.Fprintf(out, "  %-16s not whole: \"rehome lab down --lab %s\" removes what is left\n", l, l)
			}
			return nil
		},
	}
}

// labScenario is one that "lab run" can play.
type labScenario struct {
	name, about string
	// play returns the result, which --output json prints, and whether it is good.
	play func(ctx context.Context, o labOptions) (any, bool, error)
}

type labOptions struct {
	command    []string
	migrations int
	// connections is for the scenarios with many.
	connections int
	size        int64
	interval    time.Duration
	report      io.Writer
	logLevel    string
	// lazy is for the scenario process.
	lazy bool
	// policies and seeds are for the scenario overload; empty: its own.
	policies []scenario.OverloadPolicy
	seeds    []uint64
}

func scenarios() []labScenario {
	return []labScenario{{
		name:  "live-migration",
		about: "a download, an upload and an echo session move between three servers while they go on",
		play: func(ctx context.Context, o labOptions) (any, bool, error) {
			r, err := scenario.LiveMigration(ctx, scenario.LiveMigrationConfig{
				Command: o.command, Migrations: o.migrations, Size: o.size, Interval: o.interval, Report: o.report, LogLevel: o.logLevel,
			})
			if err != nil {
				return nil, false, err
			}
			return r, r.OK, nil
		},
	}, {
		name:  "churn",
		about: "many connections are moved at random, over a link with loss, jitter and reordering",
		play: func(ctx context.Context, o labOptions) (any, bool, error) {
			r, err := scenario.Churn(ctx, scenario.ChurnConfig{
				Command: o.command, Migrations: o.migrations, Report: o.report, LogLevel: o.logLevel,
			})
			if err != nil {
				return nil, false, err
			}
			return r, r.OK, nil
		},
	}, {
		name:  "faults",
		about: "processes are killed at random moments of a move; --migrations counts those for each kind of process",
		play: func(ctx context.Context, o labOptions) (any, bool, error) {
			r, err := scenario.Faults(ctx, scenario.FaultsConfig{
				Command: o.command, Trials: o.migrations, Report: o.report, LogLevel: o.logLevel,
			})
			if err != nil {
				return nil, false, err
			}
			return r, r.OK, nil
		},
	}, {
		name:  "drain",
		about: "a server with many idle connections is emptied; --connections says how many",
		play: func(ctx context.Context, o labOptions) (any, bool, error) {
			r, err := scenario.Drain(ctx, scenario.DrainConfig{
				Command: o.command, Connections: o.connections, Report: o.report, LogLevel: o.logLevel,
			})
			if err != nil {
				return nil, false, err
			}
			return r, r.OK, nil
		},
	}, {
		name:  "dispatch",
		about: "clients use linked and unmodified servers through the dispatcher, which is killed, and a backend is drained",
		play: func(ctx context.Context, o labOptions) (any, bool, error) {
			lab := scenario.DispatchTopology("dispatch")
			r, err := scenario.Dispatch(ctx, scenario.DispatchConfig{
				Command: o.command, Lab: lab.Name, Front: scenario.Rehome(), Adjust: scenario.DispatchedAgents(lab.VIPs),
				Report: o.report, LogLevel: o.logLevel,
			})
			if err != nil {
				return nil, false, err
			}
			return r, r.OK, nil
		},
	}, {
		name:  "media",
		about: "RTSP, SIP and FTP sessions of unmodified programs, whose media follow their signalling to one of three servers",
		play: func(ctx context.Context, o labOptions) (any, bool, error) {
			r, err := scenario.PlayMedia(ctx, scenario.PlayMediaConfig{Command: o.command, Report: o.report, LogLevel: o.logLevel})
			if err != nil {
				return nil, false, err
			}
			return r, r.OK, nil
		},
	}, {
		name:  "overload",
		about: "twice as many sessions come as the servers can complete, under several policies of admission",
		play: func(ctx context.Context, o labOptions) (any, bool, error) {
			r, err := scenario.Overload(ctx, scenario.OverloadConfig{
				Command: o.command, Report: o.report, LogLevel: o.logLevel, Policies: o.policies, Seeds: o.seeds,
			})
			if err != nil {
				return nil, false, err
			}
			return r, r.OK, nil
		},
	}, {
		name:  "shed",
		about: "a server that is too loaded gives live connections away, then whole sessions with their media",
		play: func(ctx context.Context, o labOptions) (any, bool, error) {
			r, err := scenario.Shed(ctx, scenario.ShedConfig{Command: o.command, Report: o.report, LogLevel: o.logLevel})
			if err != nil {
				return nil, false, err
			}
			return r, r.OK, nil
		},
	}, {
		name:  "announce",
		about: "servers announce when they will fail: their connections leave before that, and stay when it is called off",
		play: func(ctx context.Context, o labOptions) (any, bool, error) {
			r, err := scenario.Announce(ctx, scenario.AnnounceConfig{Command: o.command, Report: o.report, LogLevel: o.logLevel})
			if err != nil {
				return nil, false, err
			}
			return r, r.OK, nil
		},
	}, {
		name:  "process",
		about: "redis-server moves as a whole process while clients use it; then CRIU alone moves one",
		play: func(ctx context.Context, o labOptions) (any, bool, error) {
			r, err := scenario.Process(ctx, scenario.ProcessConfig{
				Command: o.command, Moves: o.migrations, Report: o.report, LogLevel: o.logLevel, Lazy: o.lazy,
			})
			if err != nil {
				return nil, false, err
			}
			return r, r.OK, nil
		},
	}}
}

func scenarioNames() []cobra.Completion {
	var names []cobra.Completion
	for _, s := range scenarios() {
		names = append(names, cobra.CompletionWithDesc(s.name, s.about))
	}
	return names
}

func newLabRun() *cobra.Command {
	var output outputFormat
	var o labOptions
	var mib int64
	var policies []string
	var seeds []uint
	cmd := &cobra.Command{
		Use:       "run SCENARIO",
		Short:     "Play a scenario in a lab of its own and report what the clients saw",
		Args:      cobra.ExactArgs(1),
		ValidArgs: scenarioNames(),
		RunE: func(cmd *cobra.Command, args []string) error {
			self, err := os.Executable()
			if err != nil {
				return &exitError{exitFailed, err}
			}
			if o.migrations < 1 || o.connections < 1 || mib < 1 || o.interval < 0 {
				return errors.New("lab run: --migrations, --connections and --size must be positive")
			}
			o.command, o.size = []string{self}, mib<<20
			for _, p := range policies {
				o.policies = append(o.policies, scenario.OverloadPolicy(p))
			}
			for _, n := range seeds {
				o.seeds = append(o.seeds, uint64(n))
			}
			o.report = cmd.OutOrStdout()
			if output == "json" {
				o.report = cmd.ErrOrStderr()
			}
			for _, s := range scenarios() {
				if s.name == args[0] {
					return runScenario(cmd, s, o)
				}
			}
			return fmt.Errorf("lab run: there is no scenario %q: \"rehome lab list\" shows them", args[0])
		},
	}
	output.register(cmd)
	f := cmd.Flags()
	f.IntVar(&o.migrations, "migrations", 20, "how often each connection moves")
	f.IntVar(&o.connections, "connections", 10000, "number of connections, where a scenario has many")
	f.Int64Var(&mib, "size", 1024, "size of the transferred file in MiB")
	f.DurationVar(&o.interval, "interval", 10*time.Millisecond, "pause between two rounds of moves")
	f.StringSliceVar(&policies, "policies", nil, "of the scenario overload: what to compare, such as sa2c,udp; all when empty")
	f.UintSliceVar(&seeds, "seeds", nil, "of the scenario overload: the seeds of the sessions that come (1,2,3)")
	f.BoolVar(&o.lazy, "lazy", false, "of the scenario process: also move with memory that follows, for comparison")
	f.StringVar(&o.logLevel, "log-level", "warn", "the agents' log level")
	return cmd
}

func runScenario(cmd *cobra.Command, s labScenario, o labOptions) error {
	result, ok, err := s.play(cmd.Context(), o)
	if err != nil {
		return &exitError{exitFailed, err}
	}
	enc := json.NewEncoder(cmd.OutOrStdout())
	enc.SetIndent("", "  ")
	if err := enc.Encode(result); err != nil {
		return &exitError{exitFailed, err}
	}
	if !ok {
		return &exitError{exitFailed, fmt.Errorf("%s: not ok", s.name)}
	}
	return nil
}

func newLabUp() *cobra.Command {
	var name, root string
	var servers int
	var processes bool
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Build a lab with agents and demo servers, and leave it standing",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			self, err := os.Executable()
			if err != nil {
				return &exitError{exitFailed, err}
			}
			if most := netnslab.MaxHosts - 2; servers < 1 || servers > most {
				return fmt.Errorf("lab up: --servers %d: want 1 to %d", servers, most)
			}
			topo := netnslab.Standard(servers)
			topo.Name = name
			cfg := scenario.ClusterConfig{Topology: topo, Command: []string{self}, Root: root}
			if processes {
				cfg.NoServers, cfg.Adjust = true, scenario.MovingProcesses
			}
			c, err := scenario.StartCluster(cmd.Context(), cfg)
			if err != nil {
				return &exitError{exitFailed, err}
			}
			out := cmd.OutOrStdout()
			fmt.Fprintf(out, "lab %s stands: http://%v/ and echo at %v:%d\n", name, topo.VIP4(), topo.VIP4(), scenario.EchoPort)
			for _, h := range topo.Hosts {
				fmt.Fprintf(out, "  %-8s %-7s %v\n", h.Name, h.Role, h.Addr4())
			}
			flag := ""
			if name != standingLab {
				flag = " --lab " + name
			}
			fmt.Fprintf(out, "try: rehome lab exec%s a rehome status --flows\n     rehome lab exec%s client curl -s http://%v/\n     rehome lab down%s\n",
				flag, flag, topo.VIP4(), flag)
			if err := c.Release(); err != nil {
				return &exitError{exitFailed, err}
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&name, "lab", standingLab, "name of the lab")
	f.StringVar(&root, "root", ".", "directory that the demo servers serve")
	f.IntVar(&servers, "servers", 3, "number of servers")
	f.BoolVar(&processes, "processes", false, "start no demo servers: servers of your own, on one host each, are to move as whole processes")
	return cmd
}

func newLabExec() *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use:   "exec HOST COMMAND [ARG...]",
		Short: "Run a command on a host of a standing lab",
		Example: `  rehome lab exec client curl -s http://10.77.0.100/README.md
  rehome lab exec a rehome status --flows`,
		Args:              cobra.MinimumNArgs(2),
		ValidArgsFunction: completeLabHost(&name),
		RunE: func(cmd *cobra.Command, args []string) error {
			lab, err := netnslab.Reopen(name)
			if err != nil {
				return labError(name, err)
			}
			defer lab.Release() //nolint:errcheck // nothing was changed
			host, err := lab.Host(args[0])
			if err != nil {
				return &exitError{exitUsage, fmt.Errorf("lab %s has no host %q: it has %s", name, args[0], strings.Join(labHosts(lab), ", "))}
			}
			args = args[1:]
			if args[0] == "--" && len(args) > 1 {
				args = args[1:]
			}
			self, err := os.Executable()
			if err != nil {
				return &exitError{exitFailed, err}
			}
			if args[0] == "rehome" {
				args[0] = self
			}
			c := host.Command(cmd.Context(), args[0], args[1:]...)
			c.Stdin, c.Stdout, c.Stderr = cmd.InOrStdin(), cmd.OutOrStdout(), cmd.ErrOrStderr()
			c.Env = append(os.Environ(), controlEnvironment+"="+scenario.ControlSocket(name, host.Name()),
				"PATH="+filepath.Dir(self)+":"+os.Getenv("PATH"))
			var exit *exec.ExitError
			if err := c.Run(); errors.As(err, &exit) && exit.ExitCode() > 0 {
				return &exitError{exit.ExitCode(), nil} // the command has said why
			} else if err != nil {
				return &exitError{exitFailed, err}
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&name, "lab", standingLab, "name of the lab")
	cmd.Flags().SetInterspersed(false)
	return cmd
}

func newLabRestart() *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use: "restart-agent HOST", Short: "Stop the agent of a host of a standing lab, and start it again", Args: cobra.ExactArgs(1),
		ValidArgsFunction: completeLabHost(&name),
		RunE: func(cmd *cobra.Command, args []string) error {
			self, err := os.Executable()
			if err != nil {
				return &exitError{exitFailed, err}
			}
			if err := scenario.RestartAgent(cmd.Context(), name, []string{self}, args[0]); err != nil {
				return labError(name, err)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "agent of %s restarted\n", args[0])
			return nil
		},
	}
	cmd.Flags().StringVar(&name, "lab", standingLab, "name of the lab")
	return cmd
}

// labError says what to do about a lab that is not there, or not whole.
func labError(name string, err error) error {
	switch {
	case errors.Is(err, netnslab.ErrNotFound):
		err = fmt.Errorf("no lab %q stands: \"rehome lab list\" shows those that do, \"rehome lab up --lab %s\" builds it (%w)", name, name, err)
	case errors.Is(err, os.ErrNotExist):
		err = fmt.Errorf("lab %q is not whole: \"rehome lab down --lab %s\" removes what is left (%w)", name, name, err)
	}
	return &exitError{exitFailed, err}
}

func labHosts(lab *netnslab.Lab) []string {
	names := []string{netnslab.SwitchName}
	for _, h := range lab.Hosts() {
		names = append(names, h.Name())
	}
	return names
}

func newLabDown() *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use: "down", Short: "Remove a standing lab", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if err := scenario.TakeDown(name); err != nil {
				return labError(name, err)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&name, "lab", standingLab, "name of the lab")
	return cmd
}

func newLabServe() *cobra.Command {
	var cfg demo.Config
	var calmly bool
	cmd := &cobra.Command{
		Use: "serve", Short: "Run the demo server", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := newLogger(cmd, "info")
			if err != nil {
				return err
			}
			cfg.Logger = log
			if calmly {
				if err := calm.Monitor(); err != nil {
					log.Warn("clients wait a little longer for connections that move", "error", err)
				}
				defer calm.NewProcessors().Close()
				go calm.CollectRarely(cmd.Context())
			}
			if err := demo.Serve(cmd.Context(), cfg, nil); err != nil {
				return &exitError{exitFailed, err}
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&cfg.Agent, "agent-socket", "", "the agent's socket for applications")
	f.StringVar(&cfg.Root, "root", ".", "directory to serve")
	f.StringVar(&cfg.Files, "files", "", "address for HTTP, such as :80")
	f.StringVar(&cfg.Echo, "echo", "", "address for echo, such as :7")
	f.IntVar(&cfg.EchoCapacity, "echo-capacity", 0, "connections at which the echo reports to be fully loaded; 0 reports nothing")
	f.IntVar(&cfg.StateBytes, "state-bytes", 0, "pad the State of every connection")
	f.IntVar(&cfg.AheadBytes, "ahead-bytes", 0, "send so much ahead of the State")
	f.BoolVar(&calmly, "calm", false, "run on one processor, and let Go's runtime disturb as little as possible, for the sake of clients whose connection moves")
	return cmd
}
