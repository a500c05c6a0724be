// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// collect cuts a stream that comes in pieces of one size.
func collect(stream string, size, limit int) (got []string) {
	l := NewLines(limit)
	for rest := stream; len(rest) > 0; {
		piece := []byte(rest[:min(size, len(rest))])
		rest = rest[len(piece):]
		for len(piece) > 0 {
			line, after, ok := l.Next(piece)
			piece = after
			if ok {
				got = append(got, fmt.Sprintf("%s|%v", line.Text, line.Cut))
			}
		}
	}
	if l.Begun() {
		got = append(got, "more")
	}
	return got
}

func TestLines(t *testing.T) {
	for _, c := range []struct {
		stream string
		want   []string
	}{
		{"", nil},
		{"a", []string{"more"}},
		{"a\r", []string{"more"}},
		{"a\r\n", []string{"a|false"}},
		{"a\n\r\n\nb", []string{"a|false", "|false", "|false", "more"}},
		{"a\rb\r\r\n", []string{"a\rb\r|false"}},
		{"1234567\n", []string{"1234567|false"}},
		{"123456\r\n", []string{"123456|false"}},
		{"12345678\n", []string{"12345678|true"}},
		{"1234567\r\n", []string{"1234567\r|true"}},
		{strings.Repeat("x", 100) + "\ny\n", []string{"xxxxxxxx|true", "y|false"}},
		{strings.Repeat("x", 100), []string{"more"}},
	} {
		for size := 1; size <= 10; size++ {
			if d := cmp.Diff(c.want, collect(c.stream, size, 8)); d != "" {
				t.Errorf("%q in pieces of %d (-want +got):\n%s", c.stream, size, d)
			}
		}
	}
}

func TestLinesReset(t *testing.T) {
	l := NewLines(8)
	if l.Next([]byte(strings.Repeat("x", 20))); !l.Begun() {
		t.Error("nothing begun")
	}
	if l.Reset(); l.Begun() {
		t.Error("still begun")
	}
	if line, _, ok := l.Next([]byte("a\n")); !ok || line.Cut || string(line.Text) != "a" {
		t.Errorf("%q, %v", line.Text, line.Cut)
	}
}

func TestField(t *testing.T) {
	for _, c := range []struct {
		line, name, value string
		ok                bool
	}{
		{"A: b", "A", "b", true},
		{"A \t:\t b c ", "A", "b c", true},
		{"A:", "A", "", true},
		{"A:b:c", "A", "b:c", true},
		{":b", "", "b", false},
		{"A", "", "", false},
		{"", "", "", false},
	} {
		name, value, ok := Field([]byte(c.line))
		if string(name) != c.name || string(value) != c.value || ok != c.ok {
			t.Errorf("%q: %q %q %v", c.line, name, value, ok)
		}
	}
}

func TestNumber(t *testing.T) {
	for _, c := range []struct {
		text string
		most uint32
		want uint32
		ok   bool
	}{
		{"0", 0, 0, true},
		{"00042", 42, 42, true},
		{"43", 42, 43, false},
		{"4294967295", 4294967295, 4294967295, true},
		{"4294967296", 4294967295, 0, false},
		{"99999999999", 4294967295, 0, false},
		{"", 9, 0, false},
		{"-1", 9, 0, false},
		{"+1", 9, 0, false},
		{"1 ", 9, 0, false},
		{"0x1", 9, 0, false},
	} {
		if n, ok := Number([]byte(c.text), c.most); n != c.want && ok || ok != c.ok {
			t.Errorf("%q: %d, %v", c.text, n, ok)
		}
	}
}

func TestName(t *testing.T) {
	long := strings.Repeat("x", MaxName)
	if Name(long) != long {
		t.Error("a name that fits is changed")
	}
	a, b := Name(long+"a"), Name(long+"b")
	if a == b || len(a) > MaxName || !strings.HasPrefix(a, "sha256:") {
		t.Errorf("%q and %q", a, b)
	}
}

func TestStrings(t *testing.T) {
	for i := range protocols {
		checkName(t, "protocol", i.String(), i == 0)
	}
	for i := range sides {
		checkName(t, "side", i.String(), i == 0)
	}
	for i := range methods {
		checkName(t, "method", i.String(), i == 0)
	}
	for i := range transports {
		checkName(t, "transport", i.String(), i == 0)
	}
	for i := range Misplaced + 1 {
		checkName(t, "reason", i.String(), i == 0)
	}
	for _, s := range []string{protocols.String(), sides.String(), methods.String(), (Misplaced + 1).String()} {
		checkName(t, "beyond the last", s, true)
	}
}

// checkName holds that values have names, and only the first one that of none.
func checkName(t *testing.T, what, s string, first bool) {
	t.Helper()
	if none := s == "none" || s == "unknown"; s == "" || none != first && s != "rejected" {
		t.Errorf("%s %q", what, s)
	}
}
