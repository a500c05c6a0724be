// SPDX-License-Identifier: Apache-2.0

package handoff

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/rehome-net/rehome/handoff/wire"
)

// asyncAwait asks in the background.
func asyncAwait(c *Conn) <-chan error {
	got := make(chan error, 1)
	go func() { got <- c.Await(context.Background()) }()
	return got
}

func pending(t *testing.T, what string, got <-chan error) {
	t.Helper()
	select {
	case err := <-got:
		t.Fatalf("%s: Await returned %v too early", what, err)
	case <-time.After(20 * time.Millisecond):
	}
}

// TestAwait follows a connection that stays once, and then moves.
func TestAwait(t *testing.T) {
	path := socketPath(t)
	agent := startAgent(t, path)
	source := listen(t, path, Config{Export: exportNothing})
	from := agent.app()
	arriving := make(chan (<-chan error), 1)
	target := listen(t, path, Config{Import: func(_ context.Context, c *Conn, _ State) error {
		arriving <- asyncAwait(c)
		return nil
	}})
	to := agent.app()
	_, server := connect(t, source)
	if err := server.Await(t.Context()); err != nil {
		t.Errorf("served here: %v", err)
	}
	closeFD(from.export(1, server.Flow()).fd)
	stays := asyncAwait(server)
	pending(t, "exported", stays)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := server.Await(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("asked in vain: %v", err)
	}
	from.send(1, &wire.Resume{})
	if err := await(t, "the connection that stays", stays); err != nil {
		t.Errorf("it stays: %v", err)
	}
	e := from.export(2, server.Flow())
	goes := asyncAwait(server)
	to.sendImport(2, e, nil)
	comes := await(t, "the importer", arriving)
	pending(t, "imported", comes)
	expect[*wire.Imported](to, 2)
	to.send(2, &wire.Activate{})
	from.send(2, &wire.Migrated{})
	if err := await(t, "the connection that comes", comes); err != nil {
		t.Errorf("it has come: %v", err)
	}
	if err := await(t, "the connection that goes", goes); !errors.Is(err, ErrMigrated) {
		t.Errorf("it has gone: %v", err)
	}
	moved := acceptConn(t, target)
	if err := moved.Close(); err != nil {
		t.Fatal(err)
	}
	if err := moved.Await(t.Context()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}
