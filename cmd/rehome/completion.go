// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/rehome-net/rehome/agent/api"
	netnslab "github.com/rehome-net/rehome/netns-lab"
)

// completionTime is for how long the shell waits for an agent that is asked what could be meant.
const completionTime = time.Second

// completeFlags tells the shell which flags of all commands name a file, a directory or a lab. Nothing else is a file: flows, hosts and
// scenarios are not looked for in the working directory.
func completeFlags(root *cobra.Command) {
	root.CompletionOptions.SetDefaultShellCompDirective(cobra.ShellCompDirectiveNoFileComp)
	files := cobra.FixedCompletions(nil, cobra.ShellCompDirectiveDefault)
	directories := cobra.FixedCompletions(nil, cobra.ShellCompDirectiveFilterDirs)
	levels := cobra.FixedCompletions([]cobra.Completion{"debug", "info", "warn", "error"}, cobra.ShellCompDirectiveNoFileComp)
	for _, cmd := range commands(root) {
		cmd.LocalNonPersistentFlags().VisitAll(func(f *pflag.Flag) {
			switch f.Name {
			case "config", "dispatcher", "tls-cert", "tls-key", "tls-ca", "agent", "control", "agent-socket":
				complete(cmd, f.Name, files)
			case "root":
				complete(cmd, f.Name, directories)
			case "log-level":
				complete(cmd, f.Name, levels)
			case "lab":
				complete(cmd, f.Name, completeLab)
			}
		})
	}
}

// commands returns cmd and all commands under it.
func commands(cmd *cobra.Command) []*cobra.Command {
	all := []*cobra.Command{cmd}
	for _, c := range cmd.Commands() {
		all = append(all, commands(c)...)
	}
	return all
}

// complete sets how a flag is completed. The flag must exist, and have nothing set; anything else is a mistake in this program.
func complete(cmd *cobra.Command, flag string, f cobra.CompletionFunc) {
	if err := cmd.RegisterFlagCompletionFunc(flag, f); err != nil {
		cmd.PrintErrln("completion:", err)
	}
}

// ask gives f the agent and some time. A shell that completes shows no errors: who cannot be asked proposes nothing.
func (c *control) ask(cmd *cobra.Command, f func(ctx context.Context, client *api.Client) []cobra.Completion) ([]cobra.Completion, cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(cmd.Context(), completionTime)
	defer cancel()
	client, err := c.dial()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	defer client.Close() //nolint:errcheck // nothing was written
	return f(ctx, client), cobra.ShellCompDirectiveNoFileComp
}

// status proposes what pick finds in the agent's status.
func (c *control) status(cmd *cobra.Command, pick func(*api.StatusResponse) []cobra.Completion) ([]cobra.Completion, cobra.ShellCompDirective) {
	return c.ask(cmd, func(ctx context.Context, client *api.Client) []cobra.Completion {
		st, err := client.Status(ctx, &api.StatusRequest{})
		if err != nil {
			return nil
		}
		return pick(st)
	})
}

func (c *control) completePeer(cmd *cobra.Command, _ []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return c.status(cmd, func(st *api.StatusResponse) (names []cobra.Completion) {
		for _, p := range st.GetPeers() {
			names = append(names, cobra.CompletionWithDesc(p.GetName(), p.GetAddress()))
		}
		return names
	})
}

func (c *control) completeService(cmd *cobra.Command, _ []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return c.status(cmd, func(st *api.StatusResponse) (names []cobra.Completion) {
		for _, s := range st.GetServices() {
			if !slices.Contains(names, s.GetName()) { // a service has a line for each address
				names = append(names, s.GetName())
			}
		}
		return names
	})
}

func (c *control) completeMigration(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return c.status(cmd, func(st *api.StatusResponse) (flows []cobra.Completion) {
		for _, m := range st.GetMigrations() {
			flows = append(flows, cobra.CompletionWithDesc(m.GetFlow(), m.GetState()))
		}
		return flows
	})
}

func (c *control) completeFlow(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return c.ask(cmd, func(ctx context.Context, client *api.Client) (flows []cobra.Completion) {
		list, err := receiveFlows(ctx, client, "")
		if err != nil {
			return nil
		}
		for _, f := range list {
			flows = append(flows, cobra.CompletionWithDesc(f.GetFlow(), f.GetService()))
		}
		return flows
	})
}

func completeLab(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
	names, _ := netnslab.List() // a shell that completes shows no errors
	return names, cobra.ShellCompDirectiveNoFileComp
}

// completeLabHost proposes the hosts of the lab of that name; what follows the host is the shell's own business.
func completeLabHost(name *string) cobra.CompletionFunc {
	return func(_ *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveDefault
		}
		lab, err := netnslab.Reopen(*name)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		defer lab.Release() //nolint:errcheck // nothing was changed
		return labHosts(lab), cobra.ShellCompDirectiveNoFileComp
	}
}
