// SPDX-License-Identifier: Apache-2.0

package entry

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rehome-net/rehome/handoff/wire"
	"github.com/rehome-net/rehome/tcprepair"
)

// doors note what is asked of them.
type doors struct {
	said []string
	err  error
}

func (d *doors) Shut(s []netip.AddrPort, ttl time.Duration) error {
	d.said = append(d.said, fmt.Sprintf("shut %v for %v", s, ttl))
	return d.err
}

func (d *doors) Open(s []netip.AddrPort) { d.said = append(d.said, fmt.Sprintf("open %v", s)) }

func (d *doors) Moved(s []netip.AddrPort, from, to string) {
	d.said = append(d.said, fmt.Sprintf("%v from %s to %s", s, from, to))
}

// site is an entry with a process on server a that moves to b, under the id 1.
type site struct {
	t     *testing.T
	entry *Entry
	table *table
	doors doors
	now   time.Time
}

const moveID = 1

func service() netip.AddrPort { return flow(80).Local }

func token() tcprepair.Flow {
	return tcprepair.NewFlow(netip.MustParseAddrPort("[100::1]:1"), netip.MustParseAddrPort("[100::abcd]:1"))
}

// connection returns the n-th connection to the service.
func connection(n int) tcprepair.Flow {
	return tcprepair.NewFlow(service(), netip.AddrPortFrom(netip.MustParseAddr("198.51.100.7"), uint16(1000+n)))
}

func newSite(t *testing.T) *site {
	s := &site{t: t, now: time.Unix(1000, 0)}
	s.entry, s.table = newEntry()
	s.entry.Guard(&s.doors)
	return s
}

// ask sends a message from a host and returns the refusal, if it was one.
func (s *site) ask(from string, m wire.Message) error {
	s.t.Helper()
	answer, ok := s.entry.Answer(s.now, moveID, m, from)
	if !ok {
		s.t.Fatalf("%v: no answer", m.Kind())
	}
	if r, ok := answer.(*wire.LeaseRefused); ok {
		return &wire.RefusedError{Code: r.Code, Reason: r.Reason}
	}
	return nil
}

// lease begins the move, up to the commit, with two connections of which the first is known.
func (s *site) lease() {
	s.t.Helper()
	if _, err := s.table.Adopt(connection(0), 7, 1); err != nil {
		s.t.Fatal(err)
	}
	for _, m := range []wire.Message{
		&wire.LeaseGroup{Token: token(), To: "b", TTL: time.Minute, Services: []netip.AddrPort{service()}},
		&wire.Shut{},
		&wire.FlowSet{Flows: []tcprepair.Flow{connection(0), connection(1)}},
	} {
		if err := s.ask("a", m); err != nil {
			s.t.Fatalf("%v: %v", m.Kind(), err)
		}
	}
}

// owners returns who has the token and the connections.
func (s *site) owners() string {
	var list []string
	for _, f := range []tcprepair.Flow{token(), connection(0), connection(1)} {
		list = append(list, s.entry.Owner(f).String())
	}
	return strings.Join(list, " ")
}

func (s *site) expect(what, owners string, said ...string) {
	s.t.Helper()
	if got := s.owners(); got != owners {
		s.t.Errorf("%s: owners are %s, want %s", what, got, owners)
	}
	if d := cmp.Diff(said, s.doors.said); d != "" {
		s.t.Errorf("%s: doors (-want +got):\n%s", what, d)
	}
}

const (
	shutDoor = "shut [192.0.2.1:80] for 1m0s"
	openDoor = "open [192.0.2.1:80]"
	newHome  = "[192.0.2.1:80] from a to b"
)

func TestGroupCommits(t *testing.T) {
	s := newSite(t)
	s.lease()
	s.expect("leased", "a/1 a/7 a/1", shutDoor)
	for range 2 { // it may be asked again
		if o := s.entry.Commit(s.now, moveID, token(), tokenEpoch, "b"); o.Host != "b" || o.Epoch != 2 {
			t.Errorf("owner %v", o)
		}
		s.expect("committed", "b/2 b/8 b/2", shutDoor, newHome, openDoor)
	}
	if o := s.entry.Abort(s.now, moveID, token(), "a"); o.Host != "b" {
		t.Errorf("an abort that came too late: %v", o)
	}
	s.expect("after an abort", "b/2 b/8 b/2", shutDoor, newHome, openDoor)
}

func TestGroupAborts(t *testing.T) {
	s := newSite(t)
	s.lease()
	if o := s.entry.Abort(s.now, moveID, token(), "a"); o.Host != "a" || o.Epoch != 1 {
		t.Errorf("owner %v", o)
	}
	if o := s.entry.Commit(s.now, moveID, token(), tokenEpoch, "b"); o.Host != "a" {
		t.Errorf("a commit that came too late: %v", o)
	}
	s.expect("aborted", "a/1 a/7 a/1", shutDoor, openDoor)
}

// TestGroupEnds ends a lease by time, by the loss of its source, and by that of somebody else, who has nothing to do with it.
func TestGroupEnds(t *testing.T) {
	for name, end := range map[string]func(s *site){
		"time":   func(s *site) { s.now = s.now.Add(time.Minute); s.entry.Sweep(s.now) },
		"source": func(s *site) { s.entry.Lost(s.now, "a") },
	} {
		s := newSite(t)
		s.lease()
		s.entry.Sweep(s.now)
		s.entry.Lost(s.now, "b")
		s.expect(name+": still there", "a/1 a/7 a/1", shutDoor)
		end(s)
		s.entry.Commit(s.now, moveID, token(), tokenEpoch, "b")
		s.expect(name, "a/1 a/7 a/1", shutDoor, openDoor)
		if err := s.ask("a", &wire.Shut{}); err == nil {
			t.Errorf("%s: the lease stands", name)
		}
	}
}

// TestGroupIsGivenBack has the target say that what it was given does not live. Nobody else can, and not for ever.
func TestGroupIsGivenBack(t *testing.T) {
	s := newSite(t)
	s.lease()
	s.entry.Commit(s.now, moveID, token(), tokenEpoch, "b")
	s.entry.Lost(s.now, "a")
	for _, host := range []string{"a", "c"} {
		s.entry.Abort(s.now, moveID, token(), host)
		s.expect("aborted by "+host, "b/2 b/8 b/2", shutDoor, newHome, openDoor)
	}
	delete(s.table.flows, connection(1))
	for range 2 {
		if o := s.entry.Abort(s.now, moveID, token(), "b"); o.Host != "a" || o.Epoch != 3 {
			t.Errorf("owner %v", o)
		}
		s.expect("given back", "a/3 a/9 unknown", shutDoor, newHome, openDoor, "[192.0.2.1:80] from b to a")
	}
	s = newSite(t)
	s.lease()
	s.entry.Commit(s.now, moveID, token(), tokenEpoch, "b")
	s.now = s.now.Add(time.Minute)
	s.entry.Sweep(s.now)
	if o := s.entry.Abort(s.now, moveID, token(), "b"); o.Host != "b" {
		t.Errorf("given back too late: %v", o)
	}
}

// TestGroupLeavesOthers commits while one connection has ended, and its client has used its port again.
func TestGroupLeavesOthers(t *testing.T) {
	s := newSite(t)
	s.lease()
	delete(s.table.flows, connection(0))
	if _, err := s.table.Adopt(connection(0), 9, 3); err != nil {
		t.Fatal(err)
	}
	s.entry.Commit(s.now, moveID, token(), tokenEpoch, "b")
	s.expect("committed", "b/2 c/9 b/2", shutDoor, newHome, openDoor)
}

func TestGroupRefuses(t *testing.T) {
	good := func() *wire.LeaseGroup {
		return &wire.LeaseGroup{Token: token(), To: "b", TTL: time.Minute, Services: []netip.AddrPort{service()}}
	}
	for name, test := range map[string]struct {
		from string
		m    func() wire.Message
		code wire.Code
	}{
		"no service":         {"a", func() wire.Message { m := good(); m.Services = nil; return m }, wire.CodeNoService},
		"another's service":  {"a", func() wire.Message { m := good(); m.Services = append(m.Services, flow(81).Local); return m }, wire.CodeNoService},
		"no server":          {"c", func() wire.Message { return good() }, wire.CodeNoService},
		"to no server":       {"a", func() wire.Message { m := good(); m.To = "c"; return m }, wire.CodeNoService},
		"no time":            {"a", func() wire.Message { m := good(); m.TTL = 0; return m }, wire.CodeFailed},
		"no lease to shut":   {"a", func() wire.Message { return &wire.Shut{} }, wire.CodeTimeout},
		"no lease to extend": {"a", func() wire.Message { return &wire.FlowSet{} }, wire.CodeTimeout},
	} {
		var refused *wire.RefusedError
		if err := newSite(t).ask(test.from, test.m()); !errors.As(err, &refused) || refused.Code != test.code {
			t.Errorf("%s: got %v, want %v", name, err, test.code)
		}
	}
	s := newSite(t)
	s.lease()
	for name, test := range map[string]struct {
		from  string
		flows []tcprepair.Flow
		code  wire.Code
	}{
		"another's lease":      {"b", []tcprepair.Flow{connection(2)}, wire.CodeTimeout},
		"another service":      {"a", []tcprepair.Flow{flow(81)}, wire.CodeNoService},
		"another's connection": {"a", []tcprepair.Flow{connection(3)}, wire.CodeEpoch},
	} {
		s.table.flows[connection(3)] = s.table.flows[connection(0)]
		r := s.table.flows[connection(3)]
		r.Node = 2
		s.table.flows[connection(3)] = r
		var refused *wire.RefusedError
		if err := s.ask(test.from, &wire.FlowSet{Flows: test.flows}); !errors.As(err, &refused) || refused.Code != test.code {
			t.Errorf("%s: got %v, want %v", name, err, test.code)
		}
	}
	if answer, _ := s.entry.Answer(s.now, moveID+1, good(), "a"); answer.Kind() != wire.KindLeaseRefused {
		t.Error("two moves of one service")
	}
	s = newSite(t)
	s.entry.doors = nil
	if err := s.ask("a", good()); err == nil {
		t.Error("without doors")
	}
	s = newSite(t)
	s.doors.err = errors.New("no")
	if err := errors.Join(s.ask("a", good()), s.ask("a", &wire.Shut{})); err == nil {
		t.Error("a door that does not shut")
	}
}
