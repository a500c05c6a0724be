// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"runtime"
	"testing"
)

// TestCommitted holds that the committed figures are those that the program draws.
func TestCommitted(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("other processors round differently (fused multiply and add), which changes a simulation's course")
	}
	files, err := drawAll()
	if err != nil {
		t.Fatal(err)
	}
	drawn, err := filepath.Glob("*.svg")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range drawn {
		if files[name] == nil {
			t.Errorf("%s is drawn by nobody", name)
		}
	}
	for name, content := range files {
		committed, err := os.ReadFile(name)
		if err != nil {
			t.Error(err)
			continue
		}
		if !bytes.Equal(committed, content) {
			t.Errorf("%s is not what the program draws: run go generate ./docs/plots", name)
		}
	}
}
