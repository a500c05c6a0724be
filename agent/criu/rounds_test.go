// SPDX-License-Identifier: Apache-2.0

package criu

import "testing"

func TestRounds(t *testing.T) {
	const mb = 1 << 20
	tests := []struct {
		name string
		room uint64
		sent []uint64 // by each round there would be
		want int
	}{
		{"a small tree", 1 << 40, []uint64{5 * mb, 5 * mb, 5 * mb}, 1},
		{"a large one that rests", 1 << 40, []uint64{500 * mb, mb, mb}, 2},
		{"a large one that writes a little", 1 << 40, []uint64{500 * mb, 100 * mb, 20 * mb, 2 * mb, 2 * mb}, 4},
		{"one that writes as fast as it is sent", 1 << 40, []uint64{500 * mb, 400 * mb, 390 * mb, 400 * mb}, 2},
		{"one that writes faster than it is sent", 1 << 40, []uint64{500 * mb, 500 * mb, 500 * mb, 500 * mb}, 2},
		{"no room for anything twice", 0, []uint64{500 * mb, 500 * mb}, 1},
		{"no end", 1 << 40, []uint64{4000 * mb, 2000 * mb, 1000 * mb, 500 * mb, 250 * mb, 125 * mb}, maxTrackedRounds},
	}
	for _, test := range tests {
		r, n := rounds{room: test.room}, 0
		for r.another() {
			r.add(test.sent[n])
			n++
		}
		if n != test.want {
			t.Errorf("%s: %d rounds, want %d", test.name, n, test.want)
		}
	}
}
