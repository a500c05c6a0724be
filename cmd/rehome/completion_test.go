// SPDX-License-Identifier: Apache-2.0

package main

import (
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	netnslab "github.com/rehome-net/rehome/netns-lab"
	"github.com/rehome-net/rehome/netns-lab/labtest"
)

// proposals returns what the shell is offered after a command line, without the descriptions, and the directive.
func proposals(t *testing.T, args ...string) ([]string, string) {
	t.Helper()
	code, out, errs := command(append([]string{cobra.ShellCompNoDescRequestCmd}, args...)...)
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if code != 0 || !strings.HasPrefix(lines[len(lines)-1], ":") {
		t.Fatalf("%q: exit code %d\n%s%s", args, code, out, errs)
	}
	return lines[:len(lines)-1], lines[len(lines)-1]
}

// Directives of cobra, as it prints them.
const (
	mayBeFile   = ":0"
	noFile      = ":4"
	isDirectory = ":16"
)

func TestCompletion(t *testing.T) {
	agent := (&fakeAgent{}).serve(t)
	const flow = "192.0.2.7:1-198.51.100.1:80"
	for _, tt := range []struct {
		name string
		args []string
		want []string // all of these
		mode string
	}{
		{"commands", []string{"dr"}, []string{"drain"}, noFile},
		{"output", []string{"status", "--output", ""}, []string{"table", "json"}, noFile},
		{"flow", []string{"migrate", "--agent", agent, ""}, []string{flow}, noFile},
		{"one flow only", []string{"migrate", "--agent", agent, flow, ""}, nil, noFile},
		{"flow in motion", []string{"abort", "--agent", agent, ""}, []string{flow}, noFile},
		{"host", []string{"migrate", "--agent", agent, "--to", ""}, []string{"web-2"}, noFile},
		{"host of a drain", []string{"drain", "--agent", agent, "--to", ""}, []string{"web-2"}, noFile},
		{"service", []string{"migrate", "--agent", agent, "--service", ""}, []string{"files"}, noFile},
		{"service of a status", []string{"status", "--agent", agent, "--service", ""}, []string{"files"}, noFile},
		{"without an agent", []string{"migrate", "--agent", t.TempDir() + "/none", "--to", ""}, nil, noFile},
		{"scenario", []string{"lab", "run", ""}, []string{"live-migration", "shed"}, noFile},
		{"log level", []string{"agent", "--log-level", ""}, []string{"debug", "info", "warn", "error"}, noFile},
		{"file", []string{"agent", "--config", ""}, nil, mayBeFile},
		{"directory", []string{"lab", "up", "--root", ""}, nil, isDirectory},
		{"no arguments", []string{"status", ""}, nil, noFile},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, mode := proposals(t, tt.args...)
			for _, w := range tt.want {
				if !slices.Contains(got, w) {
					t.Errorf("no %q in %q", w, got)
				}
			}
			if tt.want == nil && len(got) > 0 {
				t.Errorf("%q: nothing is known here", got)
			}
			if mode != tt.mode {
				t.Errorf("directive %s, want %s", mode, tt.mode)
			}
		})
	}
}

func TestCompletionOfLabs(t *testing.T) {
	lab := labtest.New(t, netnslab.Standard(2))
	name := lab.Topology().Name
	if got, _ := proposals(t, "lab", "down", "--lab", ""); !slices.Contains(got, name) {
		t.Errorf("no %s in %q", name, got)
	}
	if got, _ := proposals(t, "lab", "exec", "--lab", name, ""); !slices.Contains(got, "client") || !slices.Contains(got, "b") {
		t.Errorf("hosts: %q", got)
	}
	if got, mode := proposals(t, "lab", "exec", "--lab", name, "b", ""); len(got) > 0 || mode != mayBeFile {
		t.Errorf("the command in the host: %q %s", got, mode)
	}
	for _, tt := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"lab", "exec", "--lab", name, "zz", "true"}, exitUsage, "switch, client, entry, a, b"},
		{[]string{"lab", "exec", "--lab", "none", "a", "true"}, exitFailed, `"rehome lab up --lab none" builds it`},
		{[]string{"lab", "down", "--lab", "none"}, exitFailed, `"rehome lab list" shows those that do`},
		{[]string{"lab", "up", "--lab", "none", "--servers", "0"}, exitUsage, "want 1 to 62"},
		{[]string{"lab", "up", "--lab", "none", "--servers", "5000"}, exitUsage, "want 1 to 62"},
	} {
		if code, _, errs := command(tt.args...); code != tt.code || !strings.Contains(errs, tt.want) {
			t.Errorf("%q: exit code %d: %s, want %d and %q", tt.args, code, errs, tt.code, tt.want)
		}
	}
}

// TestCommandsOnce: a command that is added twice is listed twice.
func TestCommandsOnce(t *testing.T) {
	for _, cmd := range commands(newRoot()) {
		var names []string
		for _, c := range cmd.Commands() {
			if slices.Contains(names, c.Name()) {
				t.Errorf("%s %s stands twice", cmd.CommandPath(), c.Name())
			}
			names = append(names, c.Name())
		}
	}
}
