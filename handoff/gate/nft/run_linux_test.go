// SPDX-License-Identifier: Apache-2.0

//go:build linux

package nft

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/nftables"
)

// lines is a log that is read while it is written.
type lines struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *lines) has(s string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Contains(l.text.String(), s)
}

// TestRunSurvives: somebody flushes the ruleset, and makes it again; meanwhile transactions fail, and the process goes on.
func TestRunSurvives(t *testing.T) {
	r := newRig(t)
	var log lines
	f := r.open(t, Config{Logger: slog.New(slog.NewTextHandler(&log, nil))})
	flow := flow4()
	f.mutes[flow] = time.Now()
	if err := r.entry.Do(func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		c.DelTable(f.rules.table)
		return c.Flush()
	}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	await := func(what string, holds func() bool) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); !holds(); time.Sleep(time.Millisecond) {
			select {
			case err := <-done:
				t.Fatalf("Run ends: %v", err)
			default:
			}
			if time.Now().After(deadline) {
				t.Fatalf("waited in vain: %s\n%s", what, &log.text)
			}
		}
	}
	muted := func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		_, ok := f.mutes[flow]
		return ok
	}
	await("a transaction fails", func() bool { return log.has("nftables fail") })
	if !muted() {
		t.Error("what failed is taken for done")
	}
	if err := r.entry.Do(func() error {
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.open()
	}); err != nil {
		t.Fatal(err)
	}
	await("a transaction succeeds", func() bool { return log.has("nftables work again") })
	if muted() {
		t.Error("it is not done")
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
