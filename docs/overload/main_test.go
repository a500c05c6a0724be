// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"github.com/rehome-net/rehome/dispatcher/simulation"
)

// TestCommittedText holds that overload.txt speaks of the contenders and variations that there are. Its numbers take minutes; package
// simulation's tests hold their order on a smaller scale.
func TestCommittedText(t *testing.T) {
	text, err := os.ReadFile("overload.txt")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(text), "\n")
	has := func(name string) bool {
		for _, line := range lines {
			if strings.HasPrefix(line, name+" ") {
				return true
			}
		}
		return false
	}
	for _, c := range simulation.Contenders() {
		if !has(c.Name) {
			t.Errorf("no line for %s", c.Name)
		}
	}
	for _, v := range simulation.Variations() {
		if !has(v.Name) {
			t.Errorf("no line for %s", v.Name)
		}
	}
}

// TestRun holds that all parts print, with a line for each contender, and that an unknown part is refused.
func TestRun(t *testing.T) {
	var out bytes.Buffer
	if err := run(&out, "base", 30_000); err != nil {
		t.Fatal(err)
	}
	for _, c := range simulation.Contenders() {
		if !strings.Contains(out.String(), "\n"+c.Name+" ") {
			t.Errorf("no line for %s in:\n%s", c.Name, &out)
		}
	}
	out.Reset()
	if err := run(&out, "bursts", 4_000); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(out.String(), "\nsta") + strings.Count(out.String(), "\nsa2c"); n != 7 {
		t.Errorf("%d lines, want 7:\n%s", n, &out)
	}
	if _, err := named("no such world"); err == nil {
		t.Error("a world that there is not")
	}
	if err := run(&out, "all", 1); err == nil || !strings.Contains(err.Error(), "want base, variations, settings, thresholds or bursts") {
		t.Errorf("part all: %v", err)
	}
}
