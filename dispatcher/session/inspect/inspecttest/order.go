// SPDX-License-Identifier: Apache-2.0

package inspecttest

import (
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/rehome-net/rehome/dispatcher/session"
	"github.com/rehome-net/rehome/dispatcher/session/inspect"
)

// AnyOrder holds that it does not matter how the two sides' halves are mixed, each side's in their own order: what is announced after all
// of them is the same. It returns that, a line each.
func AnyOrder(t testing.TB, i Inspector, text string, random *rand.Rand) string {
	t.Helper()
	_, steps, err := Read(text)
	if err != nil {
		t.Fatal(err)
	}
	p := player{inspector: i, parsers: map[direction]inspect.Parser{}}
	var inOrder, client, server []inspect.Half
	for _, s := range steps {
		if s.Kind != Send {
			continue
		}
		halves, err := p.step(s)
		if err != nil {
			t.Fatal(err)
		}
		inOrder = append(inOrder, halves...)
		if s.Side == inspect.Client {
			client = append(client, halves...)
		} else {
			server = append(server, halves...)
		}
	}
	want := after(t, i, inOrder)
	mixes := [][]inspect.Half{slices.Concat(client, server), slices.Concat(server, client)}
	for range 50 {
		mixes = append(mixes, mix(client, server, random))
	}
	for _, halves := range mixes {
		if got := after(t, i, halves); got != want {
			var order []string
			for _, h := range halves {
				order = append(order, Describe(&h))
			}
			t.Fatalf("announced after all:\n%sin another order:\n%sthe order:\n%s", want, got, strings.Join(order, "\n"))
		}
	}
	return want
}

func mix(a, b []inspect.Half, random *rand.Rand) (all []inspect.Half) {
	for len(a)+len(b) > 0 {
		if random.IntN(len(a)+len(b)) < len(a) {
			all, a = append(all, a[0]), a[1:]
		} else {
			all, b = append(all, b[0]), b[1:]
		}
	}
	return all
}

// after returns what a new pair has announced after halves.
func after(t testing.TB, i Inspector, halves []inspect.Half) string {
	t.Helper()
	pair, err := i.NewPair()
	if err != nil {
		t.Fatal(err)
	}
	p := player{pair: pair, announced: map[session.Announcement]bool{}}
	for _, h := range halves {
		if _, err := p.outcome(pair.Add(h)); err != nil {
			t.Fatal(err)
		}
	}
	var lines []string
	for a := range maps.Keys(p.announced) {
		lines = append(lines, flowText(a)+"\n")
	}
	slices.Sort(lines)
	return strings.Join(lines, "")
}
