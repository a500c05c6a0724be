// SPDX-License-Identifier: Apache-2.0

package slab

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// advise asks for large pages. The advice is on whole pages of the Go heap: what else comes to lie there later has it, too, which harms nobody.
func advise[T any](s []T) {
	var zero T
	size := uintptr(len(s)) * unsafe.Sizeof(zero)
	page := uintptr(unix.Getpagesize())
	if size < largePage {
		return
	}
	begin := uintptr(unsafe.Pointer(unsafe.SliceData(s)))
	skip := -begin & (page - 1)
	length := (size - skip) &^ (page - 1)
	_ = unix.Madvise(unsafe.Slice((*byte)(unsafe.Add(unsafe.Pointer(unsafe.SliceData(s)), skip)), length), unix.MADV_HUGEPAGE)
}

// largePage is the size of a large page on amd64 and on most arm64 machines.
const largePage = 2 << 20
