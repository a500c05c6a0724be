// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/rehome-net/rehome/agent"
	"github.com/rehome-net/rehome/dispatcher"
	"github.com/rehome-net/rehome/dispatcher/api"
)

// dispatcherEnvironment names the environment variable that stands for --control.
const dispatcherEnvironment = "REHOME_DISPATCHER"

// dispatcherControl holds the flags that say which dispatcher a command talks to.
type dispatcherControl struct{ control }

func (c *dispatcherControl) register(cmd *cobra.Command) {
	address := os.Getenv(dispatcherEnvironment)
	if address == "" {
		address = dispatcher.DefaultControlSocket
	}
	f := cmd.Flags()
	f.StringVar(&c.address, "control", address, "the dispatcher: path of its control socket, or host:port; $"+dispatcherEnvironment+" stands for it")
	f.StringVar(&c.certificate, "tls-cert", "", "your certificate, for a dispatcher over TCP")
	f.StringVar(&c.key, "tls-key", "", "your key, for a dispatcher over TCP")
	f.StringVar(&c.authority, "tls-ca", "", "the authority of the dispatcher's certificate, for a dispatcher over TCP")
}

// dial returns a client of the dispatcher.
func (c *dispatcherControl) dial() (*api.Client, error) {
	if strings.HasPrefix(c.address, "/") {
		client, err := api.Dial(c.address, nil)
		if err != nil {
			return nil, &exitError{exitUsage, err}
		}
		return client, nil
	}
	if _, _, err := net.SplitHostPort(c.address); err != nil {
		return nil, &exitError{exitUsage, fmt.Errorf("--control: %q is neither an absolute path nor host:port", c.address)}
	}
	config, err := c.tls()
	if err != nil {
		return nil, &exitError{exitUsage, err}
	}
	client, err := api.Dial(c.address, config)
	if err != nil {
		return nil, &exitError{exitUsage, fmt.Errorf("%w: --tls-cert, --tls-key, --tls-ca", err)}
	}
	return client, nil
}

// callError turns an error of a call into one for the operator.
func (c *dispatcherControl) callError(err error) error {
	s, _ := status.FromError(err)
	switch {
	case err == nil:
		return nil
	case s.Code() == codes.Unavailable:
		return &exitError{exitNoAgent, fmt.Errorf("no dispatcher at %s: is it running, and may you open its socket? (%s)", c.address, s.Message())}
	case s.Code() == codes.InvalidArgument:
		return &exitError{exitUsage, errors.New(s.Message())}
	}
	return &exitError{exitFailed, errors.New(s.Message())}
}

func newDispatcherStatus() *cobra.Command {
	c := &dispatcherControl{}
	var output outputFormat
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the dispatcher's services, pools and backends, and how full its flow table is",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := c.dial()
			if err != nil {
				return err
			}
			defer client.Close() //nolint:errcheck // nothing was written
			st, err := client.Status(cmd.Context(), &api.StatusRequest{})
			if err != nil {
				return c.callError(err)
			}
			if output == "json" {
				err = printJSON(cmd.OutOrStdout(), dispatcherStatusOf(st))
			} else {
				err = printDispatcherStatus(cmd.OutOrStdout(), dispatcherStatusOf(st))
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

func newDispatcherDrain(drain bool) *cobra.Command {
	c := &dispatcherControl{}
	var output outputFormat
	cmd := &cobra.Command{
		Use:   "drain {POOL/BACKEND | BACKEND}",
		Short: "Give a backend no new connections, in one pool or in all",
		Long: `Give a backend no new connections, in one pool or in all that have it, until "rehome dispatcher undrain". Those that it has
go on there; "rehome drain" on the backend's host moves them away, too. A reload keeps it so, a restart of the dispatcher does not.

BACKEND is a host, or a backend's name as "rehome dispatcher status" shows it.`,
		Example: `  rehome dispatcher drain web-3
  rehome dispatcher drain files/web-3`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			pool, backend := splitBackend(args[0])
			return c.set(cmd, output, &api.SetBackendRequest{Pool: pool, Backend: backend, Drained: &drain})
		},
	}
	if !drain {
		cmd.Use, cmd.Short = "undrain {POOL/BACKEND | BACKEND}", "Give a backend new connections again, slowly at first if its pool says so"
		cmd.Long, cmd.Example = "", ""
	}
	c.register(cmd)
	output.register(cmd)
	return cmd
}

func newDispatcherSlowStart() *cobra.Command {
	c := &dispatcherControl{}
	var output outputFormat
	cmd := &cobra.Command{
		Use:   "slow-start POOL/BACKEND DURATION",
		Short: "Let a backend come to its full weight slowly, from now on",
		Long: `Let a backend come to its full weight in a straight line within DURATION from now on, whatever its pool's slow_start says; 0 gives it its
full weight at once. Its connections are not touched. It holds for this time: when the backend is drained and undrained again, its pool's slow_start counts.`,
		Example: `  rehome dispatcher slow-start files/web-3 2m
  rehome dispatcher slow-start files/web-3 0`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			pool, backend := splitBackend(args[0])
			if pool == "" {
				return fmt.Errorf("slow-start: %q: want POOL/BACKEND", args[0])
			}
			d, err := time.ParseDuration(args[1])
			if err != nil || d < 0 || d%time.Millisecond != 0 {
				return fmt.Errorf("slow-start: %q is no duration: want 0 to 24h, such as 90s", args[1])
			}
			millis := d.Milliseconds()
			return c.set(cmd, output, &api.SetBackendRequest{Pool: pool, Backend: backend, SlowStartMillis: &millis})
		},
	}
	c.register(cmd)
	output.register(cmd)
	return cmd
}

func newDispatcherWeight() *cobra.Command {
	c := &dispatcherControl{}
	var output outputFormat
	cmd := &cobra.Command{
		Use:   "weight POOL/BACKEND N",
		Short: "Change a backend's share of new connections",
		Long: `Change a backend's share of new connections relative to the others of its pool: 0 to 1000, as in the configuration, which is
not changed. A reload keeps it, unless the configuration has another weight than before; a restart of the dispatcher does not.`,
		Example: "  rehome dispatcher weight files/web-3 5",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			pool, backend := splitBackend(args[0])
			if pool == "" {
				return fmt.Errorf("weight: %q: want POOL/BACKEND", args[0])
			}
			n, err := strconv.ParseUint(args[1], 10, 32)
			if err != nil {
				return fmt.Errorf("weight: %q is no weight: want 0 to 1000", args[1])
			}
			weight := uint32(n)
			return c.set(cmd, output, &api.SetBackendRequest{Pool: pool, Backend: backend, Weight: &weight})
		},
	}
	c.register(cmd)
	output.register(cmd)
	return cmd
}

// splitBackend reads POOL/BACKEND or BACKEND. A backend's name can be host:/path/of/a/socket, which names no pool.
func splitBackend(text string) (pool, backend string) {
	pool, backend, found := strings.Cut(text, "/")
	if !found || strings.HasSuffix(pool, ":") {
		return "", text
	}
	return pool, backend
}

// set changes backends, and shows them as they are then.
func (c *dispatcherControl) set(cmd *cobra.Command, output outputFormat, req *api.SetBackendRequest) error {
	client, err := c.dial()
	if err != nil {
		return err
	}
	defer client.Close() //nolint:errcheck // nothing was written
	r, err := client.SetBackend(cmd.Context(), req)
	if err != nil {
		return c.callError(err)
	}
	if output == "json" {
		err = printJSON(cmd.OutOrStdout(), struct {
			Pools []poolStatus `json:"pools"`
		}{poolStatuses(r.GetPools())})
	} else {
		err = printPools(cmd.OutOrStdout(), poolStatuses(r.GetPools()))
	}
	if err != nil {
		return &exitError{exitFailed, err}
	}
	return nil
}

func newDispatcherReload() *cobra.Command {
	c := &dispatcherControl{}
	var output outputFormat
	cmd := &cobra.Command{
		Use:   "reload",
		Short: "Have the dispatcher read its configuration again",
		Long: `Have the dispatcher read its configuration again. It is put into effect as a whole, and no connection is dropped; with an
error nothing changes. What needs a restart, host, interfaces, listen, control, metrics, pin, forward, tls, plaintext and workers,
is such an error.

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
				err = printJSON(cmd.OutOrStdout(), reloadResult{r.GetServices(), r.GetPools(), r.GetRoutes(), r.GetMicros()})
			} else {
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "%d services, %d pools, %d routes in %v\n",
					r.GetServices(), r.GetPools(), r.GetRoutes(), micros(r.GetMicros()))
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

func newDispatcherCheck() *cobra.Command {
	var output outputFormat
	var config string
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Validate a dispatcher's configuration and look at what this machine can do",
		Long: `Validate a dispatcher's configuration, and look at what it expects of this machine: kernel, capabilities, BPF, interfaces,
addresses, peers; each with what to do where something is missing. "rehome check" does so for an agent.

The exit code is 2 if the configuration is wrong, 1 if something is missing that cannot be done without.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return checkDispatcher(cmd, config, output) },
	}
	output.register(cmd)
	cmd.Flags().StringVar(&config, "config", defaultDispatcherConfig, "configuration file to validate")
	return cmd
}

// checkDispatcher validates a dispatcher's configuration and prints what was found.
func checkDispatcher(cmd *cobra.Command, config string, output outputFormat) error {
	cfg, err := dispatcher.LoadConfig(config)
	if err != nil {
		return &exitError{exitUsage, err}
	}
	var found []agent.Finding
	missing := false
	for _, f := range dispatcher.Check(&cfg) {
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
}

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

func printDispatcherStatus(w io.Writer, st dispatcherStatus) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintf(t, "%s\tversion %s\tconfiguration of %s\n", st.Host, st.Version, st.Loaded.Local().Format("2006-01-02 15:04:05"))
	fmt.Fprintf(t, "flows %d of %d\tforwarded %d packets\tdropped as full %d\tunreachable %d\n",
		st.Table.Flows, st.Table.MaxFlows, st.Table.Forwarded, st.Table.Full, st.Table.Unreachable)
	for _, w := range st.Table.Ways {
		way := "packets go on at the other end of its veth pair at once"
		if !w.Shortcut {
			way = "packets leave by the interface itself: no shortcut: " + w.Why
		}
		fmt.Fprintf(t, "%s\t%s\n", w.Interface, way)
	}
	fmt.Fprintf(t, "\nSERVICE\tMODE\tADDRESSES\tROUTES\tDEFAULT\tPEEKING\tACTIVE\n")
	for _, s := range st.Services {
		fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%s\t%d\t%d\n", s.Name, s.Mode, strings.Join(s.Addresses, ","), s.Routes, s.Default, s.Peeking, s.Active)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(w)
	return printPools(w, st.Pools)
}

func printPools(w io.Writer, pools []poolStatus) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintf(t, "POOL/BACKEND\tDELIVERY\tSTATE\tWEIGHT\tACTIVE\tNODE\tADDRESS\n")
	for _, p := range pools {
		for _, b := range p.Backends {
			state := b.State
			switch {
			case b.Draining:
				state += " (by its host)"
			case b.Drained && b.State != "drained":
				state += " (drained)"
			}
			if b.HealthError != "" {
				state += fmt.Sprintf(" (check: %.60s)", b.HealthError)
			}
			if b.Unable != "" {
				state += fmt.Sprintf(" (unmodified servers: %.160s)", b.Unable)
			}
			weight := strconv.Itoa(int(b.Weight))
			if b.SlowStartLeft > 0 {
				weight += fmt.Sprintf(" (in %v)", (time.Duration(b.SlowStartLeft) * time.Millisecond).Round(time.Second))
			}
			if b.Weight != b.ConfiguredWeight {
				weight += fmt.Sprintf(" (configured %d)", b.ConfiguredWeight)
			}
			fmt.Fprintf(t, "%s/%s\t%s\t%s\t%s\t%d\t%d\t%s\n", p.Name, b.Name, p.Delivery, state, weight, b.Active, b.Node, b.Address)
		}
	}
	return t.Flush()
}
