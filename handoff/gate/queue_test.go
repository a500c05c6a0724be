// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestQueue(t *testing.T) {
	for _, c := range []struct {
		name           string
		packets, bytes int
		sizes          []int
		want           Held
	}{
		{"empty", 10, 100, nil, Held{}},
		{"fits", 3, 100, []int{10, 20, 30}, Held{Packets: 3, Bytes: 60}},
		{"too many", 2, 100, []int{10, 20, 30}, Held{Packets: 2, Bytes: 30, Dropped: 1}},
		{"too large", 9, 50, []int{20, 40, 30}, Held{Packets: 2, Bytes: 50, Dropped: 1}},
	} {
		q := queue{maxPackets: c.packets, maxBytes: c.bytes}
		for _, size := range c.sizes {
			q.add(make([]byte, size), 0)
		}
		if d := cmp.Diff(c.want, q.kept); d != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, d)
		}
		if int(q.seen) != len(c.sizes) {
			t.Errorf("%s: seen %d", c.name, q.seen)
		}
		if got := len(q.take()); got != c.want.Packets || q.bytes != 0 || len(q.take()) != 0 {
			t.Errorf("%s: took %d", c.name, got)
		}
	}
}

// A queue keeps copies: the reader's buffer is used again.
func TestQueueCopies(t *testing.T) {
	q := queue{maxPackets: 1, maxBytes: 10}
	b := []byte("abc")
	q.add(b, 0)
	b[0] = 'x'
	if got := string(q.take()[0]); got != "abc" {
		t.Errorf("queued %q", got)
	}
}
