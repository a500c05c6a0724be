// SPDX-License-Identifier: Apache-2.0

package session

import (
	"fmt"
	"strings"
	"testing"
)

func TestMediaNames(t *testing.T) {
	var m mediaNames
	if m.number("") != 0 || m.text(0) != "" {
		t.Error("no name has a number")
	}
	if n := m.number(strings.Repeat("x", maxMediaLen+1)); n != 0 {
		t.Errorf("a name of %d bytes has number %d", maxMediaLen+1, n)
	}
	for i := range 2 * maxMedia {
		name := fmt.Sprintf("m%d", i)
		n := m.number(name)
		want := name
		if i >= maxMedia-1 {
			want = ""
		}
		if m.text(n) != want || m.number(name) != n {
			t.Fatalf("%s: number %d, then %d, text %q, want %q", name, n, m.number(name), m.text(n), want)
		}
	}
}
