// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"github.com/rehome-net/rehome/agent"
	"github.com/rehome-net/rehome/agent/report"
	"github.com/rehome-net/rehome/handoff/calm"
)

// reportCommand is the agent's own: the process that sends its heartbeats.
const reportCommand = "report-vitals"

func newReport() *cobra.Command {
	return &cobra.Command{
		Use: reportCommand, Short: "Send an agent's heartbeats", Hidden: true, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := report.Serve(cmd.InOrStdin(), cmd.OutOrStdout()); err != nil {
				return &exitError{exitFailed, err}
			}
			return nil
		},
	}
}

// defaultConfig is where the agent's configuration is unless --config says otherwise.
const defaultConfig = "/etc/rehome/agent.yaml"

func newAgent() *cobra.Command {
	var config, level string
	var entry bool
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "Run this host's agent",
		Long: `Run this host's agent: it gives connections of the host's applications to other hosts, takes over theirs, and, where
the configuration names this host as a service's entry, decides where the packets of each flow go.

SIGHUP has it read its configuration again, as "rehome reload" does: as a whole or, with an error in the log, not at all.

SIGTERM ends it after the moves in flight; applications go on serving without it, and the next agent takes up where this
one ended.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := newLogger(cmd, level)
			if err != nil {
				return err
			}
			cfg, err := agent.LoadConfig(config)
			if err != nil {
				return &exitError{exitUsage, err}
			}
			if entry && !cfg.IsEntry() {
				return &exitError{exitUsage, fmt.Errorf("--entry: no service in %s names %s as its entry", config, cfg.Host)}
			}
			a := agent.New(cfg, log)
			a.SetFile(config)
			a.Calm()
			if program, err := os.Executable(); err == nil {
				a.SetReportCommand([]string{program, reportCommand})
			}
			go calm.CollectRarely(cmd.Context())
			defer onHangup(cmd.Context(), func() {
				if err := a.ReloadFile(); errors.Is(err, agent.ErrStopped) {
					log.Warn("too late to reload", "error", err)
				} // it has logged any other
			})()
			if err := a.Run(cmd.Context()); err != nil {
				return &exitError{exitFailed, err}
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&config, "config", defaultConfig, "configuration file")
	cmd.Flags().StringVar(&level, "log-level", "info", "debug, info, warn or error")
	cmd.Flags().BoolVar(&entry, "entry", false, "fail unless this host is the entry of a service")
	return cmd
}

func newLogger(cmd *cobra.Command, level string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("--log-level: %w", err)
	}
	return slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: l})), nil
}
