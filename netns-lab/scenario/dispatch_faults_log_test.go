// SPDX-License-Identifier: Apache-2.0

package scenario_test

import (
	"bytes"
	"os"
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
