// SPDX-License-Identifier: Apache-2.0

//go:build !race

package slab

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// largePage is the size of a large page on amd64 and on most arm64 machines.
const largePage = 2 << 20

func obtain[T any](n int) ([]T, error) {
	size := sizeOf[T](n)
	if size < largePage {
		return make([]T, n), nil
	}
	p, err := mapAligned(roundUp(size))
	if err != nil {
		return nil, fmt.Errorf("%d MiB of memory: %w", size>>20, os.NewSyscallError("mmap", err))
	}
	return unsafe.Slice((*T)(p), n), nil
}

func giveBack[T any](s []T) error {
	size := sizeOf[T](cap(s))
	if size < largePage {
		return nil
	}
	return os.NewSyscallError("munmap", unix.MunmapPtr(unsafe.Pointer(unsafe.SliceData(s)), roundUp(size)))
}

func sizeOf[T any](n int) uintptr {
	var zero T
	return uintptr(n) * unsafe.Sizeof(zero)
}

// roundUp returns the size of as many large pages as are needed.
func roundUp(size uintptr) uintptr { return (size + largePage - 1) &^ (largePage - 1) }

// mapAligned maps size bytes from a multiple of largePage on, and asks for large pages. Kernels before 6.7 put a mapping anywhere: so there is one
// more large page at first, and what is too much on either side goes back. Nothing is reserved: pages come when they are written.
func mapAligned(size uintptr) (unsafe.Pointer, error) {
	p, err := unix.MmapPtr(-1, 0, nil, size+largePage, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_NORESERVE)
	if err != nil {
		return nil, err
	}
	before := -uintptr(p) & (largePage - 1)
	begin := unsafe.Add(p, before)
	// Should any of this fail, there are some unused addresses more, or small pages.
	if before > 0 {
		_ = unix.MunmapPtr(p, before)
	}
	_ = unix.MunmapPtr(unsafe.Add(begin, size), largePage-before)
	_ = unix.Madvise(unsafe.Slice((*byte)(begin), size), unix.MADV_HUGEPAGE)
	return begin, nil
}
