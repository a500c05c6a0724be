// SPDX-License-Identifier: Apache-2.0

// Package slab makes large arrays for records that are looked up at random.
//
// Such a look costs a line of the CPU's cache from memory, and the way to it: with pages of 4 KiB a table of 64 MiB has more pages than the CPU
// remembers translations of, and on a virtual machine each translation is up to 24 further looks. So the kernel is asked for large pages
// (Linux, CONFIG_TRANSPARENT_HUGEPAGE with "madvise" or "always"). Where it has none, everything works as before, only slower.
//
// The memory is the garbage collector's, like any other; records with pointers are as welcome as those without. What is not written costs nothing yet, but a
// large page comes as a whole.
package slab

// Make returns n zero records, on large pages if they fill one and the system has them.
func Make[T any](n int) []T {
	s := make([]T, n)
	advise(s)
	return s
}
