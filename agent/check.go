// SPDX-License-Identifier: Apache-2.0

package agent

// Finding is one thing that Check has looked at.
type Finding struct {
	// What was looked at, such as "kernel" or "CAP_BPF".
	What string
	// OK is true when nothing is missing. Advice says what to do otherwise; an Optional thing can be done without.
	OK       bool
	Optional bool
	Detail   string
	Advice   string
}
