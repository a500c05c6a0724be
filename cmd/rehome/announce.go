// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/rehome-net/rehome/agent/api"
)

func newAnnounce() *cobra.Command {
	c := &control{}
	var (
		in     time.Duration
		cancel bool
		output outputFormat
	)
	cmd := &cobra.Command{
		Use:   "announce {--in TIME | --cancel}",
		Short: "Tell dispatchers when this host will fail",
		Long: `Tell the dispatchers that this host reports to when it will fail: for maintenance, a battery that runs empty, a contract that ends. They give it
no new sessions from now on, and have those that can move leave before the announced time; others go on. At that time it is out, whatever
it says by then. It holds until "rehome announce --cancel", which leaves where it is what has not left yet, or until the agent is started again.`,
		Example: `  rehome announce --in 10m
  rehome announce --cancel`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch given := cmd.Flags().Changed("in"); {
			case given == cancel:
				return &exitError{exitUsage, errors.New("want one of --in and --cancel")}
			case in < 0:
				return &exitError{exitUsage, fmt.Errorf("--in %v: a time ahead is wanted", in)}
			}
			client, err := c.dial()
			if err != nil {
				return err
			}
			defer client.Close() //nolint:errcheck // nothing was written
			r, err := client.Announce(cmd.Context(), &api.AnnounceRequest{InMicros: in.Microseconds(), Cancel: cancel})
			if err != nil {
				return c.callError(err)
			}
			return printAnnounced(cmd, r, output)
		},
	}
	cmd.Flags().DurationVar(&in, "in", 0, "in how long it will fail; 0 is now")
	cmd.Flags().BoolVar(&cancel, "cancel", false, "it will not fail after all")
	c.register(cmd)
	output.register(cmd)
	return cmd
}

// announced is what "rehome announce" prints in JSON.
type announced struct {
	// Failure is the time in RFC 3339; missing after --cancel.
	Failure     string `json:"failure,omitempty"`
	Dispatchers uint32 `json:"dispatchers"`
}

func printAnnounced(cmd *cobra.Command, r *api.AnnounceResponse, output outputFormat) error {
	at := time.UnixMilli(r.GetFailureUnixMillis())
	if output == "json" {
		a := announced{Dispatchers: r.GetDispatchers()}
		if r.GetFailureUnixMillis() != 0 {
			a.Failure = at.UTC().Format(time.RFC3339)
		}
		return printJSON(cmd.OutOrStdout(), a)
	}
	text := "called off"
	if r.GetFailureUnixMillis() != 0 {
		text = "fails at " + at.Format(time.DateTime)
	}
	_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s: %d dispatchers are told\n", text, r.GetDispatchers())
	return err
}
