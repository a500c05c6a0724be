// SPDX-License-Identifier: Apache-2.0

package vitals

import "errors"

// Reasons why a datagram is refused.
var (
	// ErrMalformed is a datagram that no Sealer makes.
	ErrMalformed = errors.New("vitals: malformed")
	// ErrKey is a datagram under a key that the receiver does not have, or that is another host's.
	ErrKey = errors.New("vitals: no such key: give sender and receiver the same key file")
	// ErrForged is a datagram whose MAC is wrong.
	ErrForged = errors.New("vitals: forged")
	// ErrReplayed is a datagram that has been seen, or is older than what the window remembers.
	ErrReplayed = errors.New("vitals: replayed")
	// ErrClock is a datagram from too far in the past or the future.
	ErrClock = errors.New("vitals: sent at another time: it is replayed, or the hosts' clocks differ: run NTP")
)
