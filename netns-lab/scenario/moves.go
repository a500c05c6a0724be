// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/rehome-net/rehome/agent"
	"github.com/rehome-net/rehome/agent/api"
	"github.com/rehome-net/rehome/tcprepair"
)

// findTimeout bounds the search for a connection, which may still be on its way to an application.
const findTimeout = 5 * time.Second

// Find returns the host whose application has a connection.
func (c *Cluster) Find(ctx context.Context, f tcprepair.Flow) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, findTimeout)
	defer cancel()
	for {
		for _, host := range c.Servers() {
			flows, err := c.Flows(ctx, host)
			if err != nil {
				return "", fmt.Errorf("flows of %s: %w", host, err)
			}
			for _, have := range flows {
				if have.GetFlow() == f.String() {
					return host, nil
				}
			}
		}
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("no server has %v: %w", f, ctx.Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// Flows lists the connections of a host's applications.
func (c *Cluster) Flows(ctx context.Context, host string) ([]*api.Flow, error) {
	client, err := c.Client(host)
	if err != nil {
		return nil, err
	}
	stream, err := client.Flows(ctx, &api.FlowsRequest{})
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

// Move moves one connection and returns how it went; a connection that did not move is an error.
func (c *Cluster) Move(ctx context.Context, from string, f tcprepair.Flow, to string) (*api.Moved, error) {
	moved, _, err := c.MoveAll(ctx, from, &api.MoveRequest{Flow: f.String(), To: to})
	if err != nil {
		return nil, err
	}
	if len(moved) != 1 {
		return nil, fmt.Errorf("%d moves reported", len(moved))
	}
	if m := moved[0]; m.GetOutcome() != agent.OutcomeMoved {
		return m, fmt.Errorf("%s: %s", m.GetOutcome(), m.GetError())
	}
	return moved[0], nil
}

// MoveAll asks a host's agent for a move and returns what became of each connection.
func (c *Cluster) MoveAll(ctx context.Context, from string, req *api.MoveRequest) ([]*api.Moved, *api.Summary, error) {
	client, err := c.Client(from)
	if err != nil {
		return nil, nil, err
	}
	stream, err := client.Move(ctx, req)
	if err != nil {
		return nil, nil, err
	}
	var moved []*api.Moved
	for {
		ev, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return moved, nil, errors.New("the agent ended before the move was over")
		}
		if err != nil {
			return moved, nil, err
		}
		switch {
		case ev.GetMoved() != nil:
			moved = append(moved, ev.GetMoved())
		case ev.GetSummary() != nil:
			sum := ev.GetSummary()
			if sum.GetError() != "" {
				return moved, sum, errors.New(sum.GetError())
			}
			return moved, sum, nil
		}
	}
}
