// SPDX-License-Identifier: Apache-2.0

package main

import (
	"github.com/spf13/cobra"

	"github.com/rehome-net/rehome/dispatcher"
)

// defaultDispatcherConfig is where the dispatcher's configuration is unless --config says otherwise.
const defaultDispatcherConfig = "/etc/rehome/dispatcher.yaml"

func newDispatcher() *cobra.Command {
	var config, level string
	cmd := &cobra.Command{
		Use:   "dispatcher",
		Short: "Run the dispatcher in front of a cluster",
		Long: `Run the dispatcher: it accepts the connections to its virtual addresses, looks at their first request, hands each to
a backend, and is off the path. The backends run agents, to which this host is the entry of its services.

SIGTERM ends it; connections that have been handed off go on, and the next dispatcher takes up where this one ended.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := newLogger(cmd, level)
			if err != nil {
				return err
			}
			cfg, err := dispatcher.LoadConfig(config)
			if err != nil {
				return &exitError{exitUsage, err}
			}
			if err := dispatcher.New(cfg, log).Run(cmd.Context()); err != nil {
				return &exitError{exitFailed, err}
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&config, "config", defaultDispatcherConfig, "configuration file")
	cmd.Flags().StringVar(&level, "log-level", "info", "debug, info, warn or error")
	return cmd
}
