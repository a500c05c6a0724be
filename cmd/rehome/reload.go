// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/rehome-net/rehome/agent/api"
)

// agentReload is what "rehome reload" prints in JSON.
type agentReload struct {
	Services uint32 `json:"services"`
	Peers    uint32 `json:"peers"`
	Micros   int64  `json:"micros"`
}

func newReload() *cobra.Command {
	c := &control{}
	var output outputFormat
	cmd := &cobra.Command{
		Use:   "reload",
		Short: "Have the agent read its configuration again",
		Long: `Have this host's agent read its configuration again. It is put into effect as a whole: moves in flight go on, and flows keep
their servers; with an error nothing changes. What needs a restart is such an error, which names the keys.

The exit code is 2 if the configuration is wrong, 1 if it needs a restart or cannot be put into effect.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := c.dial()
			if err != nil {
				return err
			}
			defer client.Close() //nolint:errcheck // nothing was written
			r, err := client.Reload(cmd.Context(), &api.ReloadRequest{})
			if err != nil {
				return c.callError(err)
			}
			if output == "json" {
				err = printJSON(cmd.OutOrStdout(), agentReload{r.GetServices(), r.GetPeers(), r.GetMicros()})
			} else {
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "%d services, %d peers in %v\n", r.GetServices(), r.GetPeers(), micros(r.GetMicros()))
			}
			if err != nil {
				return &exitError{exitFailed, err}
			}
			return nil
		},
	}
	c.register(cmd)
	output.register(cmd)
	return cmd
}

// onHangup calls f at every SIGHUP, one call after the other, until the function that it returns is called. That one waits for f.
func onHangup(ctx context.Context, f func()) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGHUP)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-signals:
				f()
			case <-ctx.Done():
				return
			}
		}
	}()
	return func() {
		signal.Stop(signals)
		cancel()
		<-done
	}
}
