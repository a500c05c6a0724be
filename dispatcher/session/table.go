// SPDX-License-Identifier: Apache-2.0

package session

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// Table has the sessions. It is not safe for concurrent use.
type Table struct {
	config Config
	base   time.Time // zero of the records' times
	hasher hasher

	flows    racks
	sessions arena[dialog, *dialog]
	clients  arena[client, *client]
	names    arena[name, *name]

	// These have records by what they are looked up by; flows need none, and sessions are found by their flows and names.
	byClient, byName index

	// patterns counts the announced flows by their open ports, so that nothing is looked up that cannot be there.
	patterns   [4]int
	generation uint32
	media      mediaNames
	scratch    []promise // of Announce

	cursor   uint32 // where Purge goes on, 0: at the start
	inactive int    // inactive flows that this round of Purge has met
	counters Stats
}

// New makes an empty table, or says what is wrong with the configuration. Times must not lie before now.
func New(now time.Time, config Config) (*Table, error) {
	if err := config.validate(); err != nil {
		return nil, fmt.Errorf("session: %w", err)
	}
	t := &Table{config: config.withDefaults(), base: now, hasher: newHasher()}
	for _, s := range t.stores() {
		if err := s.reserve(t.config.MaxFlows); err != nil {
			return nil, errors.Join(fmt.Errorf("session: no room for %d flows: %w", t.config.MaxFlows, err), t.Free())
		}
	}
	return t, nil
}

// store is what has memory of its own.
type store interface {
	reserve(n int) error
	free() error
}

// stores returns all. There are no more of anything than of flows.
func (t *Table) stores() []store {
	return []store{&t.flows, &t.sessions, &t.clients, &t.names, &t.byClient, &t.byName}
}

// Free gives the memory back. The table is empty from then on, and has room for nothing. An error means that some memory is lost.
func (t *Table) Free() (err error) {
	for _, s := range t.stores() {
		err = errors.Join(err, s.free())
	}
	*t = Table{base: t.base, hasher: t.hasher}
	return err
}

func (t *Table) at(now time.Time) int64 { return int64(now.Sub(t.base)) }

// Lookup returns the flow of a packet with that key: the flow itself, or else the announced flow that it would be the
// first packet of. It changes nothing. Times are judged at now.
func (t *Table) Lookup(now time.Time, key Key) (f Flow, ok bool) {
	var packet tuple
	packet.pack(&key)
	_, found := t.search(&packet)
	if found != nil {
		t.view(t.at(now), found, &f)
	}
	return f, found != nil
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
	ref, _ := t.findClient(clientOf(addressOf(client.Unmap())))
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
	owner, _ := t.findClient(clientOf(addressOf(client.Unmap())))
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
	for ref := d.flows; ref != 0; ref = t.flows.beside(ref).next {
		if f := t.flows.at(ref); f.marks.identity() == Signalling {
			return f.key()
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
func (t *Table) search(want *tuple) (uint32, *flow) {
	if !want.exact() {
		return 0, nil
	}
	if ref, f, _ := t.find(want); f != nil {
		return ref, f
	}
	for _, o := range [...]openings{clientOpen, serverOpen} {
		if t.patterns[o] == 0 {
			continue
		}
		pattern := want.with(o)
		if ref, f, _ := t.find(&pattern); f != nil {
			return ref, f
		}
	}
	return 0, nil
}

// find returns the flow with exactly that tuple, nil if there is none, and the digest in any case.
func (t *Table) find(want *tuple) (ref uint32, f *flow, dig uint32) {
	dig = t.hasher.tuple(want)
	r, level := t.flows.of(dig)
	f, place := r.find(dig, want)
	return number(level, place), f, dig
}

func (t *Table) findClient(address address) (ref, dig uint32) {
	dig = t.hasher.address(address)
	for ref := range t.byClient.candidates(dig) {
		if t.clients.at(ref).address == address {
			return ref, dig
		}
	}
	return 0, dig
}

func (t *Table) findName(sum [32]byte) (ref, dig uint32) {
	dig = t.hasher.sum(&sum)
	for ref := range t.byName.candidates(dig) {
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

// view writes what is known of a flow to v, which is empty, piece by piece: see tuple.pack.
func (t *Table) view(at int64, f *flow, v *Flow) {
	v.Key.Client = netip.AddrPortFrom(f.from.ip(), f.clientPort)
	v.Key.Server = netip.AddrPortFrom(f.to.ip(), f.serverPort)
	v.Key.Protocol = uint8(f.protocol)
	v.Session, v.Server = f.id(), f.server
	v.Identity, v.Status, v.Media = f.marks.identity(), f.status(at), t.media.text(f.media)
	v.Seen, v.Timeout = t.base.Add(time.Duration(f.seen)), time.Duration(f.silence())
}

func (t *Table) sessionView(ref uint32) Session {
	d := t.sessions.at(ref)
	return Session{
		ID: t.id(ref), Server: d.server, Client: t.clients.at(d.client).address.ip(),
		Signalling: int(d.signalling), Media: int(d.media), Expires: t.base.Add(time.Duration(d.until)),
	}
}
