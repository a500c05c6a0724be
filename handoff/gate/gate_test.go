// SPDX-License-Identifier: Apache-2.0

//go:build linux

package gate

import (
	"context"
	"errors"
	"testing"
)

// run runs the gate until the test ends.
func run(t testing.TB, g *Gate) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil && !errors.Is(err, ErrClosed) {
			t.Error(err)
		}
	})
}

func TestOpenClose(t *testing.T) {
	hosts := network(t, 1)
	hosts[0].gated(t)
}
