// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/rehome-net/rehome/agent/api"
)

func newStatus() *cobra.Command {
	c := &control{}
	var output outputFormat
	var flows bool
	var service string
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show services, peers, moves in flight and, with --flows, every connection",
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
			var list []*api.Flow
			if flows {
				if list, err = receiveFlows(cmd.Context(), client, service); err != nil {
					return c.callError(err)
				}
			}
			if output == "json" {
				return printJSON(cmd.OutOrStdout(), agentOutputOf(st, list, flows))
			}
			return printStatus(cmd.OutOrStdout(), st, list, flows)
		},
	}
	c.register(cmd)
	output.register(cmd)
	cmd.Flags().BoolVar(&flows, "flows", false, "list every connection of this host's applications")
	cmd.Flags().StringVar(&service, "service", "", "with --flows: only this service")
	complete(cmd, "service", c.completeService)
	return cmd
}

func receiveFlows(ctx context.Context, client *api.Client, service string) ([]*api.Flow, error) {
	stream, err := client.Flows(ctx, &api.FlowsRequest{Service: service})
	if err != nil {
		return nil, err
	}
	var list []*api.Flow
	for {
		f, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return list, nil
		}
		if err != nil {
			return nil, err
		}
		list = append(list, f)
	}
}

func printStatus(w io.Writer, st *api.StatusResponse, list []*api.Flow, flows bool) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	state := "serving"
	if st.GetDraining() {
		state = "draining"
	}
	if at := st.GetFailureUnixMillis(); at != 0 {
		state += ", fails at " + time.UnixMilli(at).Format(time.DateTime)
	}
	fmt.Fprintf(t, "%s\t%s\tversion %s\n", st.GetHost(), state, st.GetVersion())
	n := st.GetCounters()
	fmt.Fprintf(t, "moved out %d\tmoved in %d\tresumed %d\trefused %d\tlost %d\trecovered %d\n",
		n.GetMovedOut(), n.GetMovedIn(), n.GetResumed(), n.GetRefused(), n.GetLost(), n.GetRecovered())
	fmt.Fprintf(t, "\nSERVICE\tADDRESS\tENTRY\tSERVERS\tAPPLICATIONS\n")
	for _, s := range st.GetServices() {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%d\n", s.GetName(), s.GetAddress(), s.GetEntry(), strings.Join(s.GetServers(), ","), s.GetApplications())
	}
	fmt.Fprintf(t, "\nPEER\tADDRESS\tMAC\tCONNECTION\n")
	for _, p := range st.GetPeers() {
		connection := "not needed yet"
		switch {
		case p.GetConnected():
			connection = "up"
		case p.GetError() != "":
			connection = p.GetError()
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", p.GetName(), p.GetAddress(), p.GetMac(), connection)
	}
	if len(st.GetMigrations()) > 0 {
		fmt.Fprintf(t, "\nMOVING\tROLE\tPEER\tSTATE\tFOR\n")
		for _, m := range st.GetMigrations() {
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%v\n", m.GetFlow(), m.GetRole(), m.GetPeer(), m.GetState(), micros(m.GetAgeMicros()))
		}
	}
	if flows {
		fmt.Fprintf(t, "\nFLOW\tSERVICE\tEPOCH\tAGE\tMOVABLE\n")
		for _, f := range list {
			fmt.Fprintf(t, "%s\t%s\t%d\t%v\t%v\n", f.GetFlow(), f.GetService(), f.GetEpoch(), micros(f.GetAgeMicros()), f.GetMovable())
		}
	}
	return t.Flush()
}

func micros(n int64) time.Duration {
	return (time.Duration(n) * time.Microsecond).Round(time.Millisecond)
}
