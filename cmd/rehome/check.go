// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/rehome-net/rehome/agent"
)

func newCheck() *cobra.Command {
	var output outputFormat
	var config, front string
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Validate the configuration and look at what this machine can do",
		Long: `Look at this machine: kernel, capabilities, BPF, addresses; each with what to do where something is missing. The
configuration (` + defaultConfig + ` if there is one, or --config) is validated first, and what it expects of this machine is looked at, too.
With --dispatcher it is a dispatcher's, as with "rehome dispatcher check".

The exit code is 2 if the configuration is wrong, 1 if something is missing that cannot be done without.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if front != "" {
				return checkDispatcher(cmd, front, output)
			}
			var cfg *agent.Config
			if _, err := os.Stat(defaultConfig); config == "" && err == nil {
				config = defaultConfig
			}
			if config != "" {
				c, err := agent.LoadConfig(config)
				if err != nil {
					return &exitError{exitUsage, err}
				}
				cfg = &c
			}
			found := agent.Check(cfg)
			if err := printFindings(cmd.OutOrStdout(), found, output); err != nil {
				return &exitError{exitFailed, err}
			}
			for _, f := range found {
				if !f.OK && !f.Optional {
					return &exitError{exitFailed, errors.New("something is missing: see above")}
				}
			}
			return nil
		},
	}
	output.register(cmd)
	cmd.Flags().StringVar(&config, "config", "", "configuration file to validate")
	cmd.Flags().StringVar(&front, "dispatcher", "", "configuration file of a dispatcher to validate")
	cmd.MarkFlagsMutuallyExclusive("config", "dispatcher")
	return cmd
}

func printFindings(w io.Writer, found []agent.Finding, output outputFormat) error {
	if output == "json" {
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		return enc.Encode(found)
	}
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	for _, f := range found {
		mark := "ok"
		switch {
		case !f.OK && f.Optional:
			mark = "note"
		case !f.OK:
			mark = "MISSING"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\n", mark, f.What, f.Detail)
		if f.Advice != "" {
			fmt.Fprintf(t, "\t\t-> %s\n", f.Advice)
		}
	}
	return t.Flush()
}
