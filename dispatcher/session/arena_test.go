// SPDX-License-Identifier: Apache-2.0

package session

import (
	"testing"
	"unsafe"
)

// TestSizes holds what the memory figure and the one line of the cache rest on.
func TestSizes(t *testing.T) {
	for what, c := range map[string]struct{ got, want uintptr }{
		"flow":       {unsafe.Sizeof(flow{}), 64},
		"siblings":   {unsafe.Sizeof(siblings{}), 8},
		"dialog":     {unsafe.Sizeof(dialog{}), 56},
		"client":     {unsafe.Sizeof(client{}), 24},
		"name":       {unsafe.Sizeof(name{}), 40},
		"tuple":      {unsafe.Sizeof(tuple{}), 38},
		"flow's end": {unsafe.Offsetof(flow{}.generation) + 4, 64},
	} {
		if c.got != c.want {
			t.Errorf("%s: %d bytes, want %d", what, c.got, c.want)
		}
	}
}

// TestFlowAlignment holds that a flow does not straddle two lines of the cache.
func TestFlowAlignment(t *testing.T) {
	var a arena[flow, *flow]
	for range 3 * pageSize {
		if _, f := a.alloc(); uintptr(unsafe.Pointer(f))%64 != 0 {
			t.Fatalf("flow at %p", f)
		}
	}
}

func TestArena(t *testing.T) {
	var a arena[client, *client]
	const n = 2*pageSize + 10
	seen := make(map[uint32]bool)
	for range n {
		ref, c := a.alloc()
		if ref == 0 || seen[ref] {
			t.Fatalf("number %d given twice, or none", ref)
		}
		seen[ref] = true
		c.flows = ref
	}
	for ref := range seen {
		if got := a.at(ref).flows; got != ref {
			t.Fatalf("%d has become %d", ref, got)
		}
	}
	if len(a.pages) != 3 || a.top != n || a.used != n {
		t.Errorf("%d pages, top %d, %d used; want 3, %d, %d", len(a.pages), a.top, a.used, n, n)
	}
	for _, ref := range []uint32{7, pageSize, n} {
		a.release(ref)
	}
	for _, want := range []uint32{n, pageSize, 7, n + 1} {
		ref, c := a.alloc()
		if ref != want || *c != (client{}) {
			t.Errorf("got %d %+v, want %d and a zero record", ref, *c, want)
		}
	}
}
