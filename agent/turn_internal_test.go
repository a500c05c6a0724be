// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"log/slog"
	"sync"
	"testing"
)

func TestTurn(t *testing.T) {
	var u turn
	if u.try() {
		t.Error("a turn was taken before run was there")
	}
	u.open()
	if !u.try() {
		t.Fatal("no turn although the engine is at rest")
	}
	if u.try() {
		t.Error("two turns at once")
	}
	u.end()
	u.queued()
	if u.try() {
		t.Error("a turn was taken before an earlier event's")
	}
	u.begin()
	u.dealt()
	u.end()
	if !u.try() {
		t.Error("no turn after the earlier event's")
	}
	u.shut()
	u.end()
	if u.try() {
		t.Error("a turn was taken after the end")
	}
}

// TestHandleKeepsOrder has several goroutines hand over numbered events, some by handle and some by post: each one's must be dealt with in its order,
// and no two at the same time. The race detector watches, too.
func TestHandleKeepsOrder(t *testing.T) {
	e := newEngine(Config{Host: "a"}, nil, nil, newMetrics(), nil, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	go func() { _ = e.run(ctx) }()
	const goroutines, each = 4, 20000
	var last [goroutines]int
	inside := 0
	var wg sync.WaitGroup
	for g := range goroutines {
		wg.Go(func() {
			for i := 1; i <= each; i++ {
				give := e.handle
				if (i/7+g)%3 == 0 {
					give = e.post
				}
				give(func(*engine) {
					if inside++; inside != 1 {
						t.Errorf("%d events at once", inside)
					}
					if last[g] != i-1 {
						t.Errorf("event %d of goroutine %d came after %d", i, g, last[g])
					}
					last[g] = i
					inside--
				})
			}
		})
	}
	wg.Wait()
	if !e.ask(t.Context(), func(*engine) {}) {
		t.Fatal("the engine has ended")
	}
	for g, n := range last {
		if n != each {
			t.Errorf("%d of %d events of goroutine %d were dealt with", n, each, g)
		}
	}
	cancel()
	<-e.stopped
	e.handle(func(*engine) { t.Error("an event was dealt with after the end") })
}
