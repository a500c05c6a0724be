// SPDX-License-Identifier: Apache-2.0

// Command rehome moves live TCP connections between servers: it is the agent on every host, and the operator's tool.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/rehome-net/rehome/agent/criu"
	"github.com/rehome-net/rehome/handoff/peer"
)

// Exit codes.
const (
	exitFailed  = 1 // what was asked for did not happen, or not all of it
	exitUsage   = 2 // the command line or the configuration is wrong
	exitNoAgent = 3 // the agent or dispatcher cannot be reached
)

// exitError is an error with the exit code that it leads to. A nil err has been told already.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}
func (e *exitError) Unwrap() error { return e.err }

func main() {
	if len(os.Args) > 1 && os.Args[1] == criu.InitCommand {
		os.Exit(criu.Init(os.Args[2:]))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run executes one command line and returns its exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	var exit *exitError
	if !errors.As(err, &exit) {
		exit = &exitError{exitUsage, err}
	}
	if exit.err != nil {
		fmt.Fprintln(stderr, "rehome:", err)
	}
	return exit.code
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "rehome",
		Short: "Move live TCP connections between servers",
		Long: `rehome moves live TCP connections between servers; clients keep their connection and never notice.

On every server runs "rehome agent"; the operator types "rehome drain" before a reboot, or "rehome migrate" for one
connection.

Exit codes: 0 done; 1 not done, or not all of it; 2 wrong command line or configuration; 3 the agent, or the dispatcher, cannot be
reached.`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       peer.Version(),
	}
	root.AddCommand(newAgent(), newReport(), newDispatcher(), newGateway(), newMigrate(), newDrain(), newUndrain(), newAnnounce(), newAbort(), newReload(),
		newStatus(), newCheck(), newLab(), newVersion())
	completeFlags(root)
	return root
}

func newVersion() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		Run: func(cmd *cobra.Command, _ []string) { fmt.Fprintln(cmd.OutOrStdout(), peer.Version()) },
	}
}
