// SPDX-License-Identifier: Apache-2.0

package leakcheck

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
)

// descriptors lists what the process has open. Sockets, pipes and files have names of their own, so that one more of a kind shows as itself.
func descriptors(Config) ([]string, error) {
	// The runtime opens its poller's descriptors with the first pollable file: have them in every snapshot.
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("file descriptors: %w", err)
	}
	if err := errors.Join(r.Close(), w.Close()); err != nil {
		return nil, fmt.Errorf("file descriptors: %w", err)
	}
	const dir = "/proc/self/fd"
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("file descriptors: %w", err)
	}
	var list []string
	for _, e := range entries {
		target, err := os.Readlink(filepath.Join(dir, e.Name()))
		if errors.Is(err, os.ErrNotExist) {
			continue // the one that read the directory
		}
		if err != nil {
			return nil, fmt.Errorf("file descriptors: %w", err)
		}
		list = append(list, "file descriptor of "+target)
	}
	return list, nil
}

// goroutines lists the functions that goroutines were started with, and by whom.
func goroutines(Config) ([]string, error) {
	buf := make([]byte, 1<<20)
	for {
		n := runtime.Stack(buf, true)
		if n < len(buf) {
			return parseStacks(string(buf[:n])), nil
		}
		buf = make([]byte, 2*len(buf))
	}
}

// parseStacks reads what runtime.Stack wrote. The first goroutine is the caller's; it and those of the testing package and of signal delivery are left out.
func parseStacks(dump string) []string {
	creator := regexp.MustCompile(`(?m)^created by (.*?)(?: in goroutine \d+)?$`)
	spared := []string{"testing.", "os/signal.", "runtime."}
	stacks := strings.Split(strings.TrimSpace(dump), "\n\n")
	var list []string
	for _, s := range stacks[1:] {
		m := creator.FindStringSubmatchIndex(s)
		if m == nil {
			continue // the main goroutine
		}
		by := s[m[2]:m[3]]
		if slices.ContainsFunc(spared, func(p string) bool { return strings.HasPrefix(by, p) }) {
			continue
		}
		list = append(list, fmt.Sprintf("goroutine %s, created by %s", outermost(s[:m[0]]), by))
	}
	return list
}

// outermost returns the function at the bottom of a stack. A frame is two lines, the function with its arguments and, indented, its place.
func outermost(stack string) string {
	var name string
	for line := range strings.Lines(stack) {
		call := strings.LastIndexByte(line, '(')
		if call <= 0 || line[0] == '\t' || strings.HasPrefix(line, "runtime.goexit(") {
			continue
		}
		name = line[:call]
	}
	return name
}
