// SPDX-License-Identifier: Apache-2.0

package criu

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// request makes what CRIU writes.
func request(command uint32, pages, address, process uint64) []byte {
	b := binary.NativeEndian.AppendUint32(nil, command)
	b = binary.NativeEndian.AppendUint32(b, 0xdeadbeef) // padding is what was there
	for _, v := range []uint64{pages, address, process} {
		b = binary.NativeEndian.AppendUint64(b, v)
	}
	return b
}

func TestRequests(t *testing.T) {
	tests := []struct {
		name  string
		raw   []byte
		want  Fetch
		more  bool
		wrong bool
	}{
		{"fetch", request(7, 16, 0x7f0000001000, 812), Fetch{Process: 812, Address: 0x7f0000001000, Pages: 16}, true, false},
		{"flags do not matter", request(7|4<<16, 1, 0, 1), Fetch{Process: 1, Pages: 1}, true, false},
		{"close", request(0x1023, 0, 0, 0), Fetch{}, false, false},
		{"force close", request(0x1024, 0, 0, 0), Fetch{}, false, false},
		{"no pages", request(7, 0, 0x1000, 812), Fetch{}, false, true},
		{"too many", request(7, 1<<20, 0x1000, 812), Fetch{}, false, true},
		{"more than fit into 32 bits", request(7, 1<<32+1, 0x1000, 812), Fetch{}, false, true},
		{"odd address", request(7, 1, 0x1001, 812), Fetch{}, false, true},
		{"no process", request(7, 1, 0x1000, 0), Fetch{}, false, true},
		{"no such process", request(7, 1, 0x1000, 1<<40), Fetch{}, false, true},
		{"pages to store", request(1, 1, 0x1000, 1), Fetch{}, false, true},
		{"cut off", request(7, 1, 0x1000, 1)[:31], Fetch{}, false, true},
	}
	for _, test := range tests {
		got, more, err := parseRequest(test.raw)
		if (err != nil) != test.wrong {
			t.Errorf("%s: %v", test.name, err)
		}
		if err == nil && (more != test.more || !cmp.Equal(got, test.want)) {
			t.Errorf("%s: %v, %s", test.name, more, cmp.Diff(test.want, got))
		}
	}
}

func TestAnswer(t *testing.T) {
	m := Memory{Process: 812, Address: 0x7f0000001000, Data: bytes.Repeat([]byte("x"), 2*PageSize)}
	want := append(request(6|4<<16, 2, 0x7f0000001000, 812), m.Data...)
	copy(want[4:], make([]byte, 4))
	if got := appendAnswer(nil, m); !bytes.Equal(got, want) {
		t.Errorf("got %x, want %x", got[:iovBytes], want[:iovBytes])
	}
	for _, m := range []Memory{{}, {Process: 1}, {Process: 1, Data: []byte("part")}, {Process: 1, Address: 1, Data: make([]byte, PageSize)}, {Data: make([]byte, PageSize)}} {
		if err := m.check(); !errors.Is(err, ErrMemory) {
			t.Errorf("%d bytes at %d of %d: %v", len(m.Data), m.Address, m.Process, err)
		}
	}
}

func FuzzRequest(f *testing.F) {
	f.Add(request(7, 16, 0x7f0000001000, 812))
	f.Add(request(0x1024, 0, 0, 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, more, err := parseRequest(b)
		if err == nil && more && got.check() != nil {
			t.Errorf("%v was let through", got)
		}
	})
}
