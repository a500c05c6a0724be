// SPDX-License-Identifier: Apache-2.0

package session

import (
	"math/rand/v2"
	"testing"
	"time"
)

// narrow lets an empty table begin with one shelf or few, so that it grows early and often.
func narrow(tb testing.TB, table *Table) {
	tb.Helper()
	n := table.config.MaxFlows
	if err := table.flows.free(); err != nil {
		tb.Fatal(err)
	}
	if err := table.flows.reserveFrom(1, n); err != nil {
		tb.Fatal(err)
	}
}

// TestRacks holds that each rack has room for all flows at which it is left, and the last one for all that there may be.
func TestRacks(t *testing.T) {
	for _, n := range []int{1, 13, 14, 1000, 6655, 6656, 1 << 20} {
		for _, few := range []int{1, fewShelves} {
			var x racks
			if err := x.reserveFrom(few, n); err != nil {
				t.Fatal(err)
			}
			all := append([]rack{x.now}, x.larger...)
			if last := len(all[len(all)-1].shelves); last != n/fullLine+1 {
				t.Errorf("%d flows from %d: the last rack has %d shelves", n, few, last)
			}
			if len(all) > 1 && (len(all[0].shelves) < few || len(all[0].shelves) > 2*few) || len(all) >= 1<<levelBits {
				t.Errorf("%d flows from %d: %d racks, the first has %d shelves", n, few, len(all), len(all[0].shelves))
			}
			for i, r := range all {
				if len(r.flows) != perLine*len(r.shelves) || len(r.beside) != len(r.flows) || len(r.flows) > placeMask {
					t.Errorf("%d flows from %d: rack %d has %d shelves, %d and %d places", n, few, i, len(r.shelves), len(r.flows), len(r.beside))
				}
				if i > 0 && len(r.shelves) < 2*len(all[i-1].shelves)-1 {
					t.Errorf("%d flows from %d: rack %d has %d shelves after %d", n, few, i, len(r.shelves), len(all[i-1].shelves))
				}
			}
			freed(t, &x)
		}
	}
}

// TestGrows fills tables through all sizes of their racks, while flows end, patterns are used up, sessions meet and Purge goes round. All flows are found
// all the time, those that are in use stay, and the others go.
func TestGrows(t *testing.T) {
	for _, keep := range []uint32{^uint32(0), 0xff000000, 0} {
		most := 3000
		if keep == 0 {
			most = 400
		}
		d := &duel{T: t, table: newTable(t, Config{MaxFlows: most})}
		narrow(t, d.table)
		d.table.hasher.keep = keep
		g := growth{duel: d, random: rand.New(rand.NewPCG(1, uint64(keep))), flows: make(map[Key]bool)}
		levels := len(d.table.flows.larger) + 1
		for i := 0; d.table.Stats().Flows < most-2; i++ {
			g.step(i)
			if i%97 == 0 {
				g.check()
			}
		}
		g.check()
		if got := d.table.flows; int(got.level) != levels || len(got.larger) > 0 || levels < 5 {
			t.Errorf("%#x: at the end the rack is the %dth of %d", keep, got.level, levels)
		}
		if g.both < 10 {
			t.Errorf("%#x: two racks were in use in %d steps, the test tests nothing", keep, g.both)
		}
		g.purge()
	}
}

// growth opens flows.
type growth struct {
	*duel
	random  *rand.Rand
	flows   map[Key]bool // whether it is in use
	actions []Action
	next    int // client
	both    int // steps with two racks
}

func (g *growth) step(i int) {
	if g.table.flows.moving() {
		g.both++
	}
	key := clientKey(g.next, 0)
	g.next++
	id, actions, err := g.table.Open(start(), key, Terms{Server: Server(i % 3)}, g.actions[:0])
	if err != nil {
		g.Fatal(err)
	}
	g.flows[key] = false
	if i%3 == 0 { // a pattern that is used up: the flow moves, perhaps from one rack to the other
		k := clientKey(g.next-1, 1)
		pattern := open(k, true, false)
		if actions, err = g.table.Announce(start(), id, []Announcement{{pattern.Client, pattern.Server, 17, "rtp"}}, actions); err != nil {
			g.Fatal(err)
		}
		if _, _, ok := g.table.Touch(start(), k, actions); !ok {
			g.Fatal("an announced flow is unknown")
		}
		g.flows[k] = false
	}
	if i%7 == 0 { // an announcement of something new, and of what another session has: the first may move the second
		g.takeOver(i)
	}
	if i%4 == 0 {
		for k := range g.flows {
			if _, ok := g.table.End(k, actions[:0]); !ok {
				g.Fatalf("%v is unknown", k)
			}
			delete(g.flows, k)
			break
		}
	}
	if i%2 == 0 {
		if actions := g.table.Purge(start(), 1+g.random.IntN(9), nil); actions != nil {
			g.Fatalf("purged %v", actions)
		}
	}
}

func (g *growth) takeOver(i int) {
	var ids [2]ID
	for j := range ids {
		key := clientKey(g.next, 0)
		g.next++
		var err error
		if ids[j], _, err = g.table.Open(start(), key, Terms{Server: Server(i % 3)}, nil); err != nil {
			return // full
		}
		g.flows[key] = false
	}
	fresh, known := clientKey(g.next-1, 2), clientKey(g.next-1, 3)
	for j, list := range [][]Key{{known}, {fresh, known, fresh, known}} {
		var announcements []Announcement
		for _, k := range list {
			announcements = append(announcements, Announcement{k.Client, k.Server, k.Protocol, "rtp"})
		}
		if _, err := g.table.Announce(start(), ids[j], announcements, nil); err != nil {
			return
		}
		for _, k := range list {
			g.flows[k] = false
			if f, ok := g.table.Lookup(start(), k); !ok || f.Session != ids[j] {
				g.Fatalf("%v is of %v, want %v", k, f.Session, ids[j])
			}
		}
	}
}

// check looks everything up.
func (g *growth) check() {
	g.Helper()
	for k := range g.flows {
		if f, ok := g.table.Lookup(start(), k); !ok || f.Key != k {
			g.Fatalf("%v is found as %v, %v; %d flows", k, f.Key, ok, len(g.flows))
		}
	}
	g.same(g.table.Stats().Flows, len(g.flows))
	g.consistent()
}

// purge has some flows used, and the others go.
func (g *growth) purge() {
	late := start().Add(time.Hour)
	used := make(map[ID]bool)
	n := 0
	for k := range g.flows {
		if n++; n%3 == 0 {
			f, _, ok := g.table.Touch(late, k, nil)
			if !ok {
				g.Fatalf("%v is unknown", k)
			}
			used[f.Session] = true
		}
	}
	stay := 0
	for k := range g.flows {
		if f, _ := g.table.Lookup(late, k); used[f.Session] {
			stay++
		}
	}
	g.table.Purge(late, 1_000_000, nil) // the rest of a round, and a whole one
	g.table.Purge(late, 1_000_000, nil)
	g.same(g.table.Stats().Flows, stay)
	g.consistent()
}

// TestPurgeMeetsAll holds that flows which are moved from one rack to the other while Purge goes round are met all the same.
func TestPurgeMeetsAll(t *testing.T) {
	for seed := range uint64(20) {
		random := rand.New(rand.NewPCG(seed, 1))
		table := newTable(t, Config{MaxFlows: 5000})
		narrow(t, table)
		late := start().Add(time.Hour)
		old := make(map[Key]bool)
		for i := range 100 + random.IntN(700) {
			openSession(t, table, 4*i)
			old[benchKey(4*i)] = true
		}
		table.cursor = 0
		for i := 0; ; i++ {
			for range random.IntN(5) {
				if _, _, err := table.Open(late, clientKey(i, 1), Terms{}, nil); err == nil {
					i++
				}
			}
			for _, a := range table.Purge(late, 1+random.IntN(30), nil) {
				if a.Kind == Remove && !old[a.Key] {
					t.Fatalf("purged %v, which is new", a.Key)
				}
				delete(old, a.Key)
			}
			if table.cursor == 0 {
				break
			}
		}
		if len(old) > 0 {
			t.Errorf("%d flows were not met", len(old))
		}
	}
}

// TestSmall holds that a table with room for a million flows takes only what its flows need.
func TestSmall(t *testing.T) {
	if underRace {
		t.Skip("the race detector keeps more about memory than the memory is")
	}
	before := resident(t)
	table := newTable(t, Config{})
	for i := range 1000 {
		openSession(t, table, 4*i)
	}
	if grown := resident(t) - before; grown > 24<<20 {
		t.Errorf("%d MiB for a thousand flows", grown>>20)
	} else {
		t.Logf("%d KiB for a thousand flows", grown>>10)
	}
}
