// SPDX-License-Identifier: Apache-2.0

package criu

import "strings"

// logFile is the name of CRIU's log in its working directory.
const logFile = "criu.log"

// reasonLines is how many lines of CRIU's log are quoted.
const reasonLines = 3

// logReason returns the first errors of a log of CRIU's: what comes behind them is their consequence.
func logReason(log string) string {
	var reasons []string
	for line := range strings.Lines(log) {
		_, said, found := strings.Cut(line, "Error (")
		if !found {
			continue
		}
		if _, text, ok := strings.Cut(said, "): "); ok {
			said = text
		}
		if strings.HasPrefix(said, "rlimit:") {
			continue // without CAP_SYS_RESOURCE, and without consequence
		}
		reasons = append(reasons, strings.TrimSpace(said))
		if len(reasons) == reasonLines {
			break
		}
	}
	return strings.Join(reasons, "; ")
}
