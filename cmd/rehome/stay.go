// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/rehome-net/rehome/agent/api"
)

// stayPause is the time between two looks at what is left.
const stayPause = 200 * time.Millisecond

// stay tells how many connections a drained host still has, and with --wait returns when it has none any more. They are those of servers that cannot give
// them away, and what could not be moved.
func (m *mover) stay(cmd *cobra.Command, client *api.Client, began time.Time) (left uint32, err error) {
	ctx := cmd.Context()
	said := uint32(0)
	for {
		st, err := client.Status(ctx, &api.StatusRequest{})
		if ctx.Err() != nil {
			return left, &exitError{exitFailed, fmt.Errorf("interrupted: %d connections are still here", left)}
		}
		if err != nil {
			return left, m.callError(err)
		}
		left = 0
		for _, s := range st.GetServices() {
			left += s.GetConnections()
		}
		switch {
		case left == 0:
			return 0, nil
		case !m.wait:
			fmt.Fprintf(cmd.ErrOrStderr(), "%d connections are still here, of servers that cannot give them away; new ones do not come (--wait waits until they have ended)\n", left)
			return left, nil
		case m.timeout > 0 && time.Since(began) > m.timeout:
			return left, &exitError{exitFailed, fmt.Errorf("%d connections are still here after %v", left, m.timeout)}
		case left != said:
			said = left
			fmt.Fprintf(cmd.ErrOrStderr(), "waiting for %d connections that cannot move\n", left)
		}
		select {
		case <-ctx.Done():
			return left, &exitError{exitFailed, errors.New("interrupted: the connections that are still here go on")}
		case <-time.After(stayPause):
		}
	}
}
