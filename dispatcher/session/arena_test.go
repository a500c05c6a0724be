// SPDX-License-Identifier: Apache-2.0

package session

import (
	"reflect"
	"testing"
	"unsafe"
)

// TestSizes holds what the memory figure and the one line of the cache rest on.
func TestSizes(t *testing.T) {
	for what, c := range map[string]struct{ got, want uintptr }{
		"flow":     {unsafe.Sizeof(flow{}), 64},
		"siblings": {unsafe.Sizeof(siblings{}), 8},
		"dialog":   {unsafe.Sizeof(dialog{}), 56},
		"client":   {unsafe.Sizeof(client{}), 24},
		"name":     {unsafe.Sizeof(name{}), 40},
		"bucket":   {unsafe.Sizeof(bucket{}), 64},
		"shelf":    {unsafe.Sizeof(shelf{}), 16},

		"flow's end": {unsafe.Offsetof(flow{}.generation) + 4, 64},
	} {
		if c.got != c.want {
			t.Errorf("%s: %d bytes, want %d", what, c.got, c.want)
		}
	}
}

// TestAlignment holds that neither a flow nor a bucket straddles two lines of the cache.
func TestAlignment(t *testing.T) {
	table := newTable(t, Config{})
	for what, p := range map[string]unsafe.Pointer{
		"flow": unsafe.Pointer(&table.flows.now.flows[1]), "bucket": unsafe.Pointer(&table.byClient.buckets[1]),
	} {
		if uintptr(p)%64 != 0 {
			t.Errorf("%s at %p", what, p)
		}
	}
}

// TestNoPointers holds that records lie where the garbage collector does not look.
func TestNoPointers(t *testing.T) {
	for _, record := range []any{flow{}, siblings{}, dialog{}, client{}, name{}, bucket{}, shelf{}} {
		if at := pointerIn(reflect.TypeOf(record)); at != "" {
			t.Errorf("%T has a pointer in %s", record, at)
		}
	}
}

// pointerIn returns the part of a type that has a pointer, empty if none.
func pointerIn(t reflect.Type) string {
	switch kind := t.Kind(); {
	case kind <= reflect.Complex128:
		return ""
	case kind == reflect.Array:
		return pointerIn(t.Elem())
	case kind == reflect.Struct:
		for f := range t.Fields() {
			if at := pointerIn(f.Type); at != "" {
				return f.Name + " " + at
			}
		}
		return ""
	}
	return t.String()
}

func TestArena(t *testing.T) {
	const n = 1000
	var a arena[client, *client]
	if err := a.reserve(n + 1); err != nil {
		t.Fatal(err)
	}
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
	if a.top != n || a.used != n {
		t.Errorf("top %d, %d used; want %d, %d", a.top, a.used, n, n)
	}
	for _, ref := range []uint32{7, 300, n} {
		a.release(ref)
	}
	for _, want := range []uint32{n, 300, 7, n + 1} {
		ref, c := a.alloc()
		if ref != want || *c != (client{}) {
			t.Errorf("got %d %+v, want %d and a zero record", ref, *c, want)
		}
	}
}
