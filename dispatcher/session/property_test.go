// SPDX-License-Identifier: Apache-2.0

package session

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func start() time.Time { return time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC) }

// duel runs a table and the model side by side, and a forwarder that does what the table's actions say.
type duel struct {
	*testing.T
	table   *Table
	model   *model
	now     time.Time
	forward map[Key]Server
	ids     []ID // of all sessions that ever were
	script  []byte
	ops     []string
}

func newDuel(t *testing.T, config Config, script []byte) *duel {
	t.Helper()
	d := &duel{
		T: t, table: newTable(t, config), now: start(), script: script, forward: make(map[Key]Server),
		model: &model{config: config.withDefaults()},
	}
	return d
}

// byte returns the next of the script, below n.
func (d *duel) byte(n int) int {
	if len(d.script) == 0 {
		return 0
	}
	b := d.script[0]
	d.script = d.script[1:]
	return int(b) % n
}

// key returns one of few, so that they meet.
func (d *duel) key() Key {
	clients := [...]string{"198.51.100.1", "198.51.100.2", "2001:db8::1", "2001:db8::2", "2001:db8:1::1"}
	servers := [...]string{"203.0.113.1", "2001:db8:ff::1"}
	c := netip.MustParseAddr(clients[d.byte(len(clients))])
	s := netip.MustParseAddr(servers[0])
	if c.Is6() {
		s = netip.MustParseAddr(servers[1])
	}
	if d.byte(16) == 15 {
		s = netip.MustParseAddr(servers[d.byte(2)])
	}
	protocol := uint8(17)
	if d.byte(4) == 3 {
		protocol = 6
	}
	return Key{netip.AddrPortFrom(c, uint16(d.byte(4))), netip.AddrPortFrom(s, uint16(d.byte(4))), protocol}
}

func (d *duel) announcements() (list []Announcement) {
	for range 1 + d.byte(3) {
		k := d.key()
		list = append(list, Announcement{k.Client, k.Server, k.Protocol, []string{"rtp", "rtcp", ""}[d.byte(3)]})
	}
	return list
}

func (d *duel) timeouts() Timeouts {
	choices := [...]time.Duration{0, 10 * time.Second, 30 * time.Second, 60 * time.Second}
	return Timeouts{Signalling: choices[d.byte(4)], Media: choices[d.byte(4)], Apart: d.byte(4) == 3}
}

func (d *duel) id() ID {
	if len(d.ids) == 0 {
		return 0
	}
	// The young ones are more likely to live.
	return d.ids[len(d.ids)-1-d.byte(min(len(d.ids), 6))]
}

// step does one operation on both.
func (d *duel) step() {
	var actions []Action
	var got, want error
	d.now = d.now.Add(time.Duration(d.byte(256)) * time.Second / 16)
	switch op := d.byte(14); op {
	case 0, 1:
		key, terms := d.key(), Terms{Server(d.byte(2)), d.timeouts()}
		d.say("open %v on %d %v", key, terms.Server, terms.Timeouts)
		var s *modelSession
		s, want = d.model.open(d.now, key, terms)
		var id ID
		id, actions, got = d.table.Open(d.now, key, terms, nil)
		if s != nil {
			s.id = id
			d.ids = append(d.ids, id)
		}
	case 2:
		id, key := d.id(), d.key()
		d.say("join %v %v", id, key)
		want = d.model.join(d.now, id, key)
		actions, got = d.table.Join(d.now, id, key, nil)
	case 3, 4, 5:
		id, list := d.id(), d.announcements()
		d.say("announce %v %v", id, list)
		want = d.model.announce(d.now, id, list)
		actions, got = d.table.Announce(d.now, id, list, nil)
	case 6, 7:
		key := d.key()
		d.say("touch %v", key)
		_, a, found := d.table.Touch(d.now, key, nil)
		actions = a
		d.same(found, d.model.touch(d.now, key))
	case 8:
		key, when := d.key(), d.now.Add(-time.Duration(d.byte(40))*time.Second)
		d.say("seen %v at %v", key, when)
		a, found := d.table.Seen(when, key, nil)
		actions = a
		d.same(found, d.model.touch(when, key))
	case 9:
		id, list := d.id(), d.announcements()
		d.say("withdraw %v %v", id, list)
		want = d.model.withdraw(id, list)
		actions, got = d.table.Withdraw(id, list, nil)
	case 10:
		key := d.key()
		d.say("end %v", key)
		a, found := d.table.End(key, nil)
		actions = a
		d.same(found, d.model.end(key))
	case 11:
		id := d.id()
		switch d.byte(4) {
		case 0:
			server := Server(d.byte(2))
			d.say("move %v to %d", id, server)
			want = d.model.move(id, server)
			actions, got = d.table.Move(id, server, nil)
		case 1:
			timeouts := d.timeouts()
			switch d.byte(4) {
			case 0:
				timeouts.Media = time.Second
			case 1:
				timeouts.Signalling = 1000 * time.Hour
			}
			d.say("timeouts %v %v", id, timeouts)
			want = d.model.setTimeouts(id, timeouts)
			got = d.table.SetTimeouts(id, timeouts)
		case 2:
			d.say("close %v", id)
			if s := d.model.session(id); s != nil {
				d.model.drop(s, func(*modelFlow) bool { return true })
			} else {
				want = ErrNoSession
			}
			actions, got = d.table.Close(id, nil)
		case 3:
			d.say("withdraw all of %v", id)
			if s := d.model.session(id); s != nil {
				d.model.drop(s, (*modelFlow).withdrawable)
			} else {
				want = ErrNoSession
			}
			actions, got = d.table.WithdrawAll(id, nil)
		}
	case 12:
		id, text := d.id(), []string{"", "a", "b", "c", "d"}[d.byte(5)]
		if d.byte(3) == 0 {
			d.say("unname %q", text)
			s := d.model.named(text)
			if s != nil {
				s.names = slices.DeleteFunc(s.names, func(n string) bool { return n == text })
			}
			d.same(d.table.Unname(text), s != nil)
			break
		}
		d.say("name %v %q", id, text)
		want = d.model.name(id, text)
		got = d.table.Name(id, text)
	case 13:
		d.purge()
		return
	}
	if !errors.Is(got, want) || (want == nil) != (got == nil) {
		d.fail("error %v, want %v", got, want)
	}
	if got != nil && len(actions) != 0 {
		d.fail("actions with an error: %v", actions)
	}
	d.apply(actions)
}

// purge lets a table purge by bits or at once. What goes must be what may go; after two whole rounds nothing is left that may.
func (d *duel) purge() {
	budget := 1 + d.byte(8)
	rounds := 1
	if budget == 8 {
		budget, rounds = 10_000, 2
	}
	d.say("purge %d, %d times", budget, rounds)
	for range rounds {
		actions := d.table.Purge(d.now, budget, nil)
		if n := len(actions); n > 2*budget {
			d.fail("%d actions with a budget of %d", n, budget)
		}
		for _, a := range actions {
			if a.Kind != Remove {
				continue
			}
			s, f := d.model.find(a.Key)
			if s == nil || !s.mayPurge(d.now, f) {
				d.fail("purged %v", a.Key)
			}
			d.model.drop(s, func(o *modelFlow) bool { return o == f })
		}
		d.apply(actions)
	}
	if rounds == 2 {
		for _, s := range d.model.sessions {
			for _, f := range s.flows {
				if s.mayPurge(d.now, f) {
					d.fail("not purged: %v", f.key)
				}
			}
		}
	}
}

func (d *duel) apply(actions []Action) {
	for _, a := range actions {
		switch a.Kind {
		case Install:
			d.forward[a.Key] = a.Server
		case Remove:
			if _, ok := d.forward[a.Key]; !ok {
				d.fail("%v: it is not there", a)
			}
			delete(d.forward, a.Key)
		case Over:
			if d.model.session(a.Session) != nil {
				d.fail("%v: it lives", a)
			}
		}
	}
}

// compare holds the table, the model and the forwarder against each other.
func (d *duel) compare() {
	forward := make(map[Key]Server)
	names, waiting := 0, 0
	for _, s := range d.model.sessions {
		names += len(s.names)
		var want []Flow
		for _, f := range s.flows {
			forward[f.key] = s.server
			status := StatusNew
			switch {
			case d.now.Sub(f.seen) >= f.timeout:
				status = StatusInactive
			case f.used:
				status = StatusEstablished
			}
			if f.identity == Announced {
				waiting++
			}
			want = append(want, Flow{f.key, s.id, s.server, f.identity, status, f.media, f.seen, f.timeout})
		}
		got := d.table.Flows(d.now, s.id, nil)
		for _, list := range [][]Flow{got, want} {
			slices.SortFunc(list, func(a, b Flow) int { return compareKeys(a.Key, b.Key) })
		}
		if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
			d.fail("%v (-model +table):\n%s", s.id, diff)
		}
		got1, ok := d.table.Session(s.id)
		want1 := Session{s.id, s.server, s.client.Addr(), len(s.flows) - s.media(), s.media(), s.until}
		if !ok || got1 != want1 {
			d.fail("session %v, want %v", got1, want1)
		}
		for _, n := range s.names {
			if id, ok := d.table.Named(n); !ok || id != s.id {
				d.fail("%q is of %v, want %v", n, id, s.id)
			}
		}
		if server, ok := d.table.ServerOf(s.client.Addr()); !ok || server != d.model.of(s.client).server {
			d.fail("%v has %d, want %d", s.client, server, d.model.of(s.client).server)
		}
	}
	if diff := cmp.Diff(forward, d.forward, cmp.Comparer(func(a, b Key) bool { return a == b })); diff != "" {
		d.fail("forwarder (-model +table):\n%s", diff)
	}
	st := d.table.Stats()
	d.same([3]int{st.Sessions, st.Names, st.Waiting}, [3]int{len(d.model.sessions), names, waiting})
	d.same(st.Flows, len(forward))
	d.same(int(st.Opened-st.Over), st.Sessions)
}

// probe looks a few packets up.
func (d *duel) probe() {
	key := d.key()
	got, ok := d.table.Lookup(d.now, key)
	s, f := d.model.search(key)
	d.same(ok, s != nil)
	if ok && (got.Key != f.key || got.Session != s.id) {
		d.fail("lookup %v: %v of %v, want %v of %v", key, got.Key, got.Session, f.key, s.id)
	}
}

func (d *duel) play() {
	for len(d.script) > 0 {
		d.step()
		d.probe()
		d.compare()
	}
	d.consistent()
}

func (d *duel) say(format string, args ...any) {
	d.ops = append(d.ops, d.now.Sub(start()).String()+" "+fmt.Sprintf(format, args...))
}

func (d *duel) same(got, want any) {
	d.Helper()
	if got != want {
		d.fail("got %v, want %v", got, want)
	}
}

func (d *duel) fail(format string, args ...any) {
	d.Helper()
	for _, op := range d.ops[max(0, len(d.ops)-40):] {
		d.Log(op)
	}
	d.Fatalf(format, args...)
}

func compareKeys(a, b Key) int {
	if c := a.Client.Compare(b.Client); c != 0 {
		return c
	}
	if c := a.Server.Compare(b.Server); c != 0 {
		return c
	}
	return int(a.Protocol) - int(b.Protocol)
}

// small is a table of which every limit is met.
func small() Config {
	return Config{MaxFlows: 14, MaxPerClient: 7, MaxAnnounced: 4, MaxSignalling: 2, MaxNames: 2}
}

// TestAgainstModel plays random scripts, with digests of 32 bits, of 2 bits and of none.
func TestAgainstModel(t *testing.T) {
	for _, keep := range []uint32{^uint32(0), 3, 0} {
		for seed := range uint64(16) {
			t.Run(fmt.Sprintf("%#x/%d", keep, seed), func(t *testing.T) {
				random := rand.New(rand.NewPCG(seed, uint64(keep)))
				script := make([]byte, 4000)
				for i := range script {
					script[i] = byte(random.Uint32())
				}
				config := small()
				if seed%3 == 0 {
					config = Config{MaxFlows: 1000}
				}
				d := newDuel(t, config, script)
				d.table.hasher.keep = keep
				if seed%3 == 0 {
					narrow(t, d.table)
				}
				d.play()
			})
		}
	}
}

// FuzzTable has the fuzzer write the scripts.
func FuzzTable(f *testing.F) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 8 {
		script := make([]byte, 300)
		for i := range script {
			script[i] = byte(random.Uint32())
		}
		f.Add(script, true, uint32(3))
	}
	f.Fuzz(func(t *testing.T, script []byte, tight bool, keep uint32) {
		config := Config{MaxFlows: 1000}
		if tight {
			config = small()
		}
		d := newDuel(t, config, script[:min(len(script), 4096)])
		d.table.hasher.keep = keep
		if !tight {
			narrow(t, d.table)
		}
		d.play()
	})
}
