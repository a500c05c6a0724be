// SPDX-License-Identifier: Apache-2.0

//go:build !race

package slab

import (
	"bufio"
	"fmt"
	"os"
	"strings"
	"testing"
	"unsafe"
)

// TestAdvised looks up, in what the kernel knows of this process, that a slab's memory is to have large pages.
func TestAdvised(t *testing.T) {
	enabled, err := os.ReadFile("/sys/kernel/mm/transparent_hugepage/enabled")
	if err != nil {
		t.Skip("this kernel has no transparent large pages: ", err)
	}
	if strings.Contains(string(enabled), "[never]") {
		t.Skip("transparent large pages are switched off on this machine")
	}
	s, err := Make[[64]byte](1 << 18)
	if err != nil {
		t.Fatal(err)
	}
	for i := range s {
		s[i][0] = 1
	}
	if flags := flagsOf(t, uintptr(unsafe.Pointer(&s[len(s)/2]))); !strings.Contains(flags+" ", " hg ") {
		t.Errorf("the kernel has not taken the advice: flags %q", flags)
	}
	if address := uintptr(unsafe.Pointer(&s[0])); address%largePage != 0 {
		t.Errorf("begins at %#x, within a large page", address)
	}
	if err := Free(s); err != nil {
		t.Error(err)
	}
}

// TestGivenBack holds that freed memory is no longer the process's, with what was too much around it.
func TestGivenBack(t *testing.T) {
	before := mapped(t)
	for range 100 {
		s, err := Make[[64]byte](1 << 18)
		if err != nil {
			t.Fatal(err)
		}
		s[1][0] = 1
		if err := Free(s); err != nil {
			t.Fatal(err)
		}
	}
	if more := mapped(t) - before; more > 100<<20 {
		t.Errorf("%d MiB of addresses more than before", more>>20)
	}
}

// TestTooMuch holds that what the kernel refuses is an error.
func TestTooMuch(t *testing.T) {
	if s, err := Make[[64]byte](1 << 52); err == nil {
		t.Errorf("got %d records", len(s))
	}
}

// mapped returns the size of the process's address space.
func mapped(t *testing.T) int {
	t.Helper()
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Fatal(err)
	}
	var pages int
	if _, err := fmt.Sscan(string(text), &pages); err != nil {
		t.Fatal(err)
	}
	return pages * os.Getpagesize()
}

// flagsOf returns the VmFlags of the mapping that an address is in (proc(5)).
func flagsOf(t *testing.T, address uintptr) string {
	t.Helper()
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	within := false
	for lines := bufio.NewScanner(f); lines.Scan(); {
		line := lines.Text()
		var from, to uintptr
		if n, _ := fmt.Sscanf(line, "%x-%x", &from, &to); n == 2 {
			within = from <= address && address < to
		}
		if flags, ok := strings.CutPrefix(line, "VmFlags:"); ok && within {
			return flags
		}
	}
	t.Fatalf("no mapping has %#x", address)
	return ""
}
