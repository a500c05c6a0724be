// SPDX-License-Identifier: Apache-2.0

// Package balance chooses the backend of a pool that gets a connection.
//
// A Policy is made once for a pool and asked for every connection:
//
//	policy, err := balance.New(balance.Config{Kind: balance.RoundRobin})
//	i := policy.Choose(time.Now(), balance.Key("198.51.100.7"), backends)
//	if i < 0 {
//		// none takes it
//	}
//	backends[i].Tried = true // when it did not work, and ask again
//
// The caller keeps the backends' state and shows it as a slice of Backend, its own copy for each connection; policies read
// it and change nothing. What a policy remembers itself is little, and is about places in that slice: keep the order, and
// make a new Policy when the pool's list of backends changes. Marks and weights may change at any time.
//
// # Policies
//
//   - RoundRobin takes turns by weight, smoothly: weights 2 and 1 give a b a, a b a, and not a a b.
//   - LeastConnections takes the backend with the fewest connections for its weight; among equals, turns by weight.
//   - ConsistentHash takes the same backend for the same key, by weighted rendezvous hashing: when a backend leaves, its keys
//     alone move, to the others by their weights, and they come back with it. Dispatchers that know the same backends
//     agree without talking, because only names, weights and the key count.
//   - PowerOfTwo draws two backends by weight and takes the one with fewer connections for its weight.
//   - Shell takes the backend with the least load to come (Backend.Load, from package forecast by way of the caller), with the
//     sessions counted that it got since it reported that load (SARA 17-22).
//
// Sticky stands before any of them and sends those who come again where they were, by session, cookie or client. What a connection shows of
// that is a Visit.
//
// All leave out backends that are Drained, Down, Tried or of weight 0, and count a young backend for less than its weight
// (Config.SlowStart). All are safe for concurrent use; ConsistentHash and PowerOfTwo take no lock, the
// others hold a mutex for one pass over the backends.
//
// The package has no clock, and starts no goroutine. It does not ask backends how they are: who does, sets Down.
package balance
