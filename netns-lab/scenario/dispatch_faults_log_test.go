// SPDX-License-Identifier: Apache-2.0

package scenario_test

import (
	"bytes"
	"os"
	"path/filepath"
)

// tail returns the end of a log.
func tail(path string) string {
	const lines = 30
	text, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	all := bytes.SplitAfter(text, []byte("\n"))
	return string(bytes.Join(all[max(0, len(all)-lines):], nil))
}

// mentions returns the lines of a log that have a text in them.
func mentions(path, text string) string {
	all, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	var found []byte
	for line := range bytes.Lines(all) {
		if text != "" && bytes.Contains(line, []byte(text)) {
			found = append(found, line...)
		}
	}
	return filepath.Base(filepath.Dir(path)) + ": " + string(found)
}
