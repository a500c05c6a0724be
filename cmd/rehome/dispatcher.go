// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/rehome-net/rehome/dispatcher"
)

// defaultDispatcherConfig is where the dispatcher's configuration is unless --config says otherwise.
const defaultDispatcherConfig = "/etc/rehome/dispatcher.yaml"

func newDispatcher() *cobra.Command {
	var config, level string
	cmd := &cobra.Command{
		Use:   "dispatcher",
		Short: "Run the dispatcher in front of a cluster, or operate it",
		Long: `Run the dispatcher: it accepts the connections to its virtual addresses, looks at their first request, hands each to
a backend, and is off the path. The backends run agents, to which this host is the entry of its services.

SIGHUP has it read its configuration again, as "rehome dispatcher reload" does: as a whole or, with an error in the log, not
at all; no connection is dropped.

SIGTERM ends it when the connections that it has accepted are handed off, after seconds; connections that have been handed
off go on, and the next dispatcher takes up where this one ended.`,
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
			d := dispatcher.New(cfg, log)
			d.SetFile(config)
			defer reloadOnSignal(cmd.Context(), d, log)()
			if err := d.Run(cmd.Context()); err != nil {
				return &exitError{exitFailed, err}
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&config, "config", defaultDispatcherConfig, "configuration file")
	cmd.Flags().StringVar(&level, "log-level", "info", "debug, info, warn or error")
	cmd.AddCommand(
		newDispatcherStatus(), newDispatcherDrain(true), newDispatcherDrain(false), newDispatcherWeight(), newDispatcherSlowStart(), newDispatcherReload(),
		newDispatcherCheck(),
	)
	return cmd
}

// reloadOnSignal has a dispatcher read its configuration again at every SIGHUP, until the function that it returns is called.
func reloadOnSignal(ctx context.Context, d *dispatcher.Dispatcher, log *slog.Logger) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGHUP)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-signals:
				if err := d.ReloadFile(ctx); errors.Is(err, dispatcher.ErrStopped) {
					log.Warn("too late to reload", "error", err)
				} // it has logged any other
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
