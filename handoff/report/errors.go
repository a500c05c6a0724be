// SPDX-License-Identifier: Apache-2.0

package report

import "errors"

// Reasons why a datagram is refused.
var (
	// ErrMalformed is a datagram that no Sealer makes.
	ErrMalformed = errors.New("report: malformed")
	// ErrKey is a datagram under a key that the receiver does not have, or that is another host's.
	ErrKey = errors.New("report: no such key: give sender and receiver the same key file")
	// ErrForged is a datagram whose MAC is wrong.
	ErrForged = errors.New("report: forged")
	// ErrReplayed is a datagram that has been seen, or is older than what the window remembers.
	ErrReplayed = errors.New("report: replayed")
	// ErrClock is a datagram from too far in the past or the future.
	ErrClock = errors.New("report: sent at another time: it is replayed, or the hosts' clocks differ: run NTP")
)
