// SPDX-License-Identifier: Apache-2.0

// Package slab makes large arrays for records that are looked up at random.
//
// Such a look costs a line of the CPU's cache from memory, and the way to it: with pages of 4 KiB a table of 64 MiB has more pages than the CPU
// remembers translations of, and on a virtual machine each translation is up to 24 further looks. So an array that fills a large page has memory of
// its own, which begins where a large page does, and the kernel is asked for large pages there (Linux, CONFIG_TRANSPARENT_HUGEPAGE with "madvise" or
// "always"). Where it has none, everything works as before, only slower; other systems, and arrays below a large page, get the garbage collector's memory.
//
// What is not written costs nothing yet, but a large page comes as a whole.
package slab

// Make returns n zero records, which must have no pointers: the garbage collector does not see them. They stay until Free. The error is the
// kernel's: there is not as much room for addresses.
func Make[T any](n int) ([]T, error) { return obtain[T](n) }

// Free gives back what Make has returned, as a whole. Nobody may look at it afterwards: the addresses are gone.
func Free[T any](s []T) error { return giveBack(s) }
