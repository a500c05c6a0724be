// SPDX-License-Identifier: Apache-2.0

// Package leakcheck finds what a test left behind: file descriptors and goroutines of the process, and, where asked, network namespaces, links, BPF objects and
// files of the machine. It takes a Snapshot before and compares after:
//
//	func TestMain(m *testing.M) { os.Exit(leakcheck.Main(m, leakcheck.Config{})) } // a whole package
//	leakcheck.Check(t, leakcheck.Config{})                                         // one test, first thing in it
//
// The kernel frees namespaces, links and BPF objects some time after their last user is gone, so a comparison waits for what is missing, up to
// Config.Wait. On a machine where others work at the same time, machine-wide patterns must name what is this process's alone.
package leakcheck

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"
)

const (
	defaultWait = 10 * time.Second
	look        = 10 * time.Millisecond
)

// Config says what to look at beside the process's own file descriptors and goroutines. The zero value looks at nothing more.
type Config struct {
	// Namespaces is the prefix of named network namespaces to look at, such as "rh-"; empty means none.
	Namespaces string
	// Links is the prefix of interfaces in the process's own network namespace; empty means none.
	Links string
	// BPF are prefixes of the names of BPF programs and maps, and of the programs of BPF links. The kernel keeps 15 characters of a name.
	BPF []string
	// Files are patterns as in path/filepath.Match, such as "/sys/fs/bpf/rehome*" or "/tmp/rh*".
	Files []string
	// Wait bounds the wait of Check and Main for what is about to go; 0 means 10 s.
	Wait time.Duration
}

func (c Config) wait() time.Duration {
	if c.Wait == 0 {
		return defaultWait
	}
	return c.Wait
}

// Snapshot is what there was at one moment.
type Snapshot struct {
	cfg   Config
	items map[string]int // how many of each
}

// Take looks now.
func Take(cfg Config) (Snapshot, error) {
	s := Snapshot{cfg: cfg, items: make(map[string]int)}
	var errs []error
	for _, list := range []func(Config) ([]string, error){descriptors, goroutines, namespaces, links, bpfObjects, files} {
		items, err := list(cfg)
		errs = append(errs, err)
		for _, i := range items {
			s.items[i]++
		}
	}
	if err := errors.Join(errs...); err != nil {
		return Snapshot{}, fmt.Errorf("leak check: %w", err)
	}
	return s, nil
}

// Leaks looks again, until nothing is there that was not before, or the time is up. It returns what is there then, in order.
func (s Snapshot) Leaks(wait time.Duration) ([]string, error) {
	deadline := time.Now().Add(wait)
	tick := time.NewTicker(look)
	defer tick.Stop()
	for {
		now, err := Take(s.cfg)
		if err != nil {
			return nil, err
		}
		leaks := s.missingIn(now)
		if len(leaks) == 0 || time.Now().After(deadline) {
			return leaks, nil
		}
		runtime.GC() // what package net keeps in pools, pipes for splice(2) for instance, goes with the next two collections
		<-tick.C
	}
}

// missingIn returns what now has more of than s.
func (s Snapshot) missingIn(now Snapshot) []string {
	var leaks []string
	for _, item := range slices.Sorted(maps.Keys(now.items)) {
		if n := now.items[item] - s.items[item]; n > 1 {
			leaks = append(leaks, fmt.Sprintf("%s (%d times)", item, n))
		} else if n == 1 {
			leaks = append(leaks, item)
		}
	}
	return leaks
}

// Check takes a snapshot and fails the test if something is left after all of the test's cleanups that are registered later: call it first. Parallel tests see
// one another's goroutines and descriptors; use Main for those.
func Check(t testing.TB, cfg Config) {
	t.Helper()
	before, err := Take(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		leaks, err := before.Leaks(cfg.wait())
		if err != nil {
			t.Error(err)
		}
		for _, l := range leaks {
			t.Errorf("left behind: %s", l)
		}
	})
}

// Main runs the tests of a package and returns the status to exit with: that of the tests, or 1 if they passed and left something behind. m is the *testing.M.
func Main(m interface{ Run() int }, cfg Config) int {
	before, err := Take(cfg)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	status := m.Run()
	leaks, err := before.Leaks(cfg.wait())
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	for _, l := range leaks {
		fmt.Fprintln(os.Stderr, "left behind:", l)
	}
	if status == 0 && (err != nil || len(leaks) > 0) {
		return 1
	}
	return status
}
