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

// TestQueuesShareRoom: flows that are each within their bound are so together, and what leaves makes room.
func TestQueuesShareRoom(t *testing.T) {
	r := room{max: 100}
	queues := make([]queue, 5)
	for i := range queues {
		queues[i] = queue{maxPackets: 10, maxBytes: 40, room: &r}
		for range 2 {
			queues[i].add(make([]byte, 20), 0)
		}
	}
	for i, want := range []int{0, 0, 1, 2, 2} {
		if got := queues[i].kept.Dropped; got != want {
			t.Errorf("queue %d has dropped %d frames, want %d", i, got, want)
		}
	}
	if r.used != 100 || r.crowded != 5 {
		t.Errorf("%d bytes are used, %d frames found no room; want 100 and 5", r.used, r.crowded)
	}
	queues[0].take()
	queues[0].take()
	if r.used != 60 || !queues[4].add(make([]byte, 40), 0) || queues[3].add([]byte{0}, 0) {
		t.Errorf("%d bytes are used, want 60, and then 100", r.used)
	}
	for i := range queues {
		queues[i].take()
	}
	if r.used != 0 {
		t.Errorf("%d bytes are used by nobody", r.used)
	}
}
