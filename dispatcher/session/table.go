// SPDX-License-Identifier: Apache-2.0

package session

import (
	"crypto/sha256"
	"fmt"
	"net/netip"
	"time"
)

// Table has the sessions. It is not safe for concurrent use.
type Table struct {
	config Config
	base   time.Time // zero of the records' times
	hasher hasher

	flows      arena[flow, *flow]
	neighbours beside // of flows
	sessions   arena[dialog, *dialog]
	clients    arena[client, *client]
	names      arena[name, *name]

	// Each has the records above by what they are looked up by; sessions are found by their flows and names.
	byTuple, byClient, byName index

	// patterns counts the announced flows by their open ports, so that nothing is looked up that cannot be there.
	patterns   [4]int
	generation uint32
	media      mediaNames
	scratch    []promise // of Announce

	cursor   uint32 // where Purge goes on
	inactive int    // inactive flows that this round of Purge has met
	counters Stats
}

// New makes an empty table, or says what is wrong with the configuration. Times must not lie before now.
func New(now time.Time, config Config) (*Table, error) {
	if err := config.validate(); err != nil {
		return nil, fmt.Errorf("session: %w", err)
	}
	t := &Table{config: config.withDefaults(), base: now, hasher: newHasher(), cursor: 1}
	t.byTuple = newIndex(t.config.MaxFlows, func(ref uint32) uint32 { return t.hasher.tuple(&t.flows.at(ref).tuple) })
	t.byClient = newIndex(t.config.MaxFlows, func(ref uint32) uint32 { return t.hasher.bytes(t.clients.at(ref).address[:]) })
	return t, nil
}

func (t *Table) at(now time.Time) int64 { return int64(now.Sub(t.base)) }

// Lookup returns the flow of a packet with that key: the flow itself, or else the announced flow that it would be the
// first packet of. It changes nothing. Times are judged at now.
func (t *Table) Lookup(now time.Time, key Key) (Flow, bool) {
	ref := t.search(key)
	if ref == 0 {
		return Flow{}, false
	}
	return t.view(t.at(now), ref), true
}

// Session returns what is known of a session.
func (t *Table) Session(id ID) (Session, bool) {
	ref, d := t.dialog(id)
	if d == nil {
		return Session{}, false
	}
	return t.sessionView(ref), true
}

// ServerOf returns the server of the client's session that was opened or moved last, among those that live.
func (t *Table) ServerOf(client netip.Addr) (Server, bool) {
	if !client.IsValid() {
		return 0, false
	}
	ref, _ := t.findClient(clientOf(client.As16()))
	if ref == 0 {
		return 0, false
	}
	return t.sessions.at(t.clients.at(ref).sessions).server, true
}

// maxServers bounds how many of a client's sessions ServerWith looks at.
const maxServers = 64

// ServerWith is ServerOf among the sessions that fit, of which it tells the server and one of their signalling flows: those of one service,
// where a client uses several. Of a client with many sessions the newest are looked at.
func (t *Table) ServerWith(client netip.Addr, fits func(Server, Key) bool) (Server, bool) {
	if !client.IsValid() {
		return 0, false
	}
	owner, _ := t.findClient(clientOf(client.As16()))
	if owner == 0 {
		return 0, false
	}
	ref := t.clients.at(owner).sessions
	for n := 0; ref != 0 && n < maxServers; n++ {
		d := t.sessions.at(ref)
		if fits(d.server, t.signallingOf(d)) {
			return d.server, true
		}
		ref = d.next
	}
	return 0, false
}

// signallingOf returns one of a session's signalling flows, the zero Key if it has none any more.
func (t *Table) signallingOf(d *dialog) Key {
	if d.signalling == 0 {
		return Key{}
	}
	for ref := d.flows; ref != 0; ref = t.neighbours.at(ref).next {
		if f := t.flows.at(ref); f.marks.identity() == Signalling {
			return f.tuple.key()
		}
	}
	return Key{}
}

// Named returns the session that has the name. See Name.
func (t *Table) Named(text string) (ID, bool) {
	ref, _ := t.findName(sha256.Sum256([]byte(text)))
	if ref == 0 {
		return 0, false
	}
	return t.id(t.names.at(ref).session), true
}

// search returns the flow of a packet, or the pattern that takes it.
func (t *Table) search(key Key) uint32 {
	exact, ok := pack(key)
	if !ok || !exact.exact() {
		return 0
	}
	if ref, _ := t.find(&exact); ref != 0 {
		return ref
	}
	for _, o := range [...]openings{clientOpen, serverOpen} {
		if t.patterns[o] == 0 {
			continue
		}
		pattern := exact.with(o)
		if ref, _ := t.find(&pattern); ref != 0 {
			return ref
		}
	}
	return 0
}

// find returns the flow with exactly that tuple, and the digest in any case.
func (t *Table) find(want *tuple) (ref, dig uint32) {
	dig = t.hasher.tuple(want)
	for ref, p := t.byTuple.next(dig, t.byTuple.home(dig)); ref != 0; ref, p = t.byTuple.next(dig, p) {
		if t.flows.at(ref).tuple == *want {
			return ref, dig
		}
	}
	return 0, dig
}

func (t *Table) findClient(address [16]byte) (ref, dig uint32) {
	dig = t.hasher.bytes(address[:])
	for ref, p := t.byClient.next(dig, t.byClient.home(dig)); ref != 0; ref, p = t.byClient.next(dig, p) {
		if t.clients.at(ref).address == address {
			return ref, dig
		}
	}
	return 0, dig
}

func (t *Table) findName(sum [32]byte) (ref, dig uint32) {
	dig = t.hasher.bytes(sum[:])
	if t.byName.slots == nil {
		return 0, dig
	}
	for ref, p := t.byName.next(dig, t.byName.home(dig)); ref != 0; ref, p = t.byName.next(dig, p) {
		if t.names.at(ref).sum == sum {
			return ref, dig
		}
	}
	return 0, dig
}

// dialog returns nil if there is no such session any more.
func (t *Table) dialog(id ID) (uint32, *dialog) {
	ref := uint32(id)
	if ref == 0 || ref > t.sessions.top || id>>32 == 0 {
		return 0, nil
	}
	d := t.sessions.at(ref)
	if d.generation != uint32(id>>32) {
		return 0, nil
	}
	return ref, d
}

func (t *Table) id(session uint32) ID {
	return ID(t.sessions.at(session).generation)<<32 | ID(session)
}

func (t *Table) view(at int64, ref uint32) Flow {
	f := t.flows.at(ref)
	return Flow{
		Key: f.tuple.key(), Session: f.id(), Server: f.server,
		Identity: f.marks.identity(), Status: f.status(at), Media: t.media.text(f.media),
		Seen: t.base.Add(time.Duration(f.seen)), Timeout: time.Duration(f.silence()),
	}
}

func (t *Table) sessionView(ref uint32) Session {
	d := t.sessions.at(ref)
	return Session{
		ID: t.id(ref), Server: d.server, Client: netip.AddrFrom16(t.clients.at(d.client).address).Unmap(),
		Signalling: int(d.signalling), Media: int(d.media), Expires: t.base.Add(time.Duration(d.until)),
	}
}
