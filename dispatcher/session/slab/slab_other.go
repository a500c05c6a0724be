// SPDX-License-Identifier: Apache-2.0

//go:build !linux || race

package slab

// Under the race detector the memory is Go's, too: it sees no other.
func obtain[T any](n int) ([]T, error) { return make([]T, n), nil }

func giveBack[T any]([]T) error { return nil }
