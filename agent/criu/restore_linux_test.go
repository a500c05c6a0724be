// SPDX-License-Identifier: Apache-2.0

package criu

import "testing"

func TestFreeID(t *testing.T) {
	for name, test := range map[string]struct {
		used []int
		want int
	}{
		"nothing":         {nil, 300},
		"below":           {[]int{2, 299}, 300},
		"just there":      {[]int{300}, 301},
		"in the room":     {[]int{340, 4000}, 341},
		"behind the room": {[]int{300 + idRoom}, 300},
		"a chain":         {[]int{400, 310, 350}, 401},
	} {
		got := freeID(test.used)
		if got != test.want {
			t.Errorf("%s: got %d, want %d", name, got, test.want)
		}
		for _, id := range test.used {
			if id >= got && id < got+idRoom {
				t.Errorf("%s: %d is taken", name, id)
			}
		}
	}
}
