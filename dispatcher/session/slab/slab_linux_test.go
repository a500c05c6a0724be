// SPDX-License-Identifier: Apache-2.0

package slab

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
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
	s := Make[[64]byte](1 << 18)
	for i := range s {
		s[i][0] = 1
	}
	if flags := flagsOf(t, uintptr(unsafe.Pointer(&s[len(s)/2]))); !strings.Contains(flags+" ", " hg ") {
		t.Errorf("the kernel has not taken the advice: flags %q", flags)
	}
	runtime.KeepAlive(s)
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
