// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"

	"github.com/spf13/cobra"

	"github.com/rehome-net/rehome/agent"
	"github.com/rehome-net/rehome/dispatcher/gateway"
)

// defaultGatewayConfig is where the gateway's configuration is unless --config says otherwise.
const defaultGatewayConfig = "/etc/rehome/gateway.yaml"

func newGateway() *cobra.Command {
	var config, level string
	cmd := &cobra.Command{
		Use:   "gateway",
		Short: "Run the reader of signalling on the servers' default gateway",
		Long: `Run the gateway: on the host that routes the servers' answers to the clients it reads what servers say in RTSP, SIP and
FTP, and tells the dispatcher, which does not see answers, the ports that they announce. An answer goes on when the dispatcher has
confirmed it, or after the time that "hold" gives.

Nothing is left behind when it ends, however it ends: signalling then passes unread. Exit code 2 says that the configuration is wrong.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			log, err := newLogger(cmd, level)
			if err != nil {
				return err
			}
			cfg, err := gateway.LoadConfig(config)
			if err != nil {
				return &exitError{exitUsage, err}
			}
			g, err := gateway.Open(cfg, gateway.Signalling, log)
			if err != nil {
				return &exitError{exitFailed, err}
			}
			log.Info("gateway is up", "host", cfg.Host, "services", len(cfg.Services), "servers", len(cfg.Servers))
			if err := errors.Join(g.Run(cmd.Context()), g.Close()); err != nil {
				return &exitError{exitFailed, err}
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&config, "config", defaultGatewayConfig, "configuration file")
	cmd.Flags().StringVar(&level, "log-level", "info", "debug, info, warn or error")
	cmd.AddCommand(newGatewayCheck())
	return cmd
}

func newGatewayCheck() *cobra.Command {
	var output outputFormat
	var config string
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Validate a gateway's configuration and look at what this machine can do",
		Long: `Validate a gateway's configuration, and look at what it expects of this machine: kernel, capabilities, interfaces, forwarding,
certificates, the dispatcher and the servers. The exit code is 2 if the configuration is wrong, 1 if something is missing that cannot
be done without.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := gateway.LoadConfig(config)
			if err != nil {
				return &exitError{exitUsage, err}
			}
			var found []agent.Finding
			missing := false
			for _, f := range gateway.Check(&cfg) {
				found = append(found, agent.Finding(f))
				missing = missing || !f.OK && !f.Optional
			}
			if err := printFindings(cmd.OutOrStdout(), found, output); err != nil {
				return &exitError{exitFailed, err}
			}
			if missing {
				return &exitError{exitFailed, errors.New("something is missing: see above")}
			}
			return nil
		},
	}
	output.register(cmd)
	cmd.Flags().StringVar(&config, "config", defaultGatewayConfig, "configuration file")
	return cmd
}
