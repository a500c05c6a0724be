// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/rehome-net/rehome/dispatcher/session"
)

func announced(ports ...uint16) (list []session.Announcement) {
	flow := session.Key{Client: at("192.0.2.7:40001"), Server: at("203.0.113.10:21"), Protocol: 6}
	for _, p := range ports {
		list = append(list, AnnounceFTP(flow, 0, p)...)
	}
	return list
}

func TestReplace(t *testing.T) {
	var p Promises
	compare := func(what string, got Outcome, install, withdraw []session.Announcement) {
		t.Helper()
		want := Outcome{Install: install, Withdraw: withdraw}
		if d := cmp.Diff(want, got, cmp.Comparer(func(a, b session.Announcement) bool { return a == b })); d != "" {
			t.Errorf("%s (-want +got):\n%s", what, d)
		}
	}
	var o Outcome
	a := p.Replace(&o, nil, announced(1, 2), 10)
	compare("the first", o, announced(1, 2), nil)

	o = Outcome{}
	b := p.Replace(&o, nil, announced(2, 3, 3), 10)
	compare("one in common", o, announced(3), nil)

	o = Outcome{}
	a = p.Replace(&o, a, announced(1, 4), 10)
	compare("one stays, one is still promised", o, announced(4), nil)

	o = Outcome{}
	p.Replace(&o, b, nil, 10)
	compare("the rest of the other", o, nil, announced(2, 3))

	o = Outcome{}
	p.Replace(&o, a, nil, 10)
	compare("the end", o, nil, announced(1, 4))
	if p.Len() != 0 {
		t.Errorf("%d are left", p.Len())
	}
}

func TestReplaceLimit(t *testing.T) {
	var p Promises
	var o Outcome
	kept := p.Replace(&o, nil, announced(1, 2, 3), 2)
	if len(kept) != 2 || len(o.Install) != 2 || len(o.Findings) != 1 || o.Findings[0].Reason != Full {
		t.Errorf("kept %v, outcome %+v", kept, o)
	}
	// What goes makes room for what comes.
	o = Outcome{}
	if kept = p.Replace(&o, kept, announced(4, 5), 2); len(kept) != 2 || len(o.Install) != 2 || len(o.Withdraw) != 2 || o.Findings != nil {
		t.Errorf("kept %v, outcome %+v", kept, o)
	}
}

// TestReplaceModel plays at random against the union of what several announce.
func TestReplaceModel(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	var p Promises
	held := make([][]session.Announcement, 5)
	installed := map[session.Announcement]bool{}
	for range 20000 {
		who := random.IntN(len(held))
		var next []session.Announcement
		for range random.IntN(4) {
			next = append(next, announced(1+uint16(random.IntN(12)))...)
		}
		var o Outcome
		held[who] = p.Replace(&o, held[who], next, 8)
		for _, a := range o.Withdraw {
			if !installed[a] {
				t.Fatalf("%v is withdrawn and was not installed", a)
			}
			delete(installed, a)
		}
		for _, a := range o.Install {
			if installed[a] {
				t.Fatalf("%v is installed twice", a)
			}
			installed[a] = true
		}
		union := map[session.Announcement]bool{}
		for _, list := range held {
			for _, a := range list {
				union[a] = true
			}
		}
		if d := cmp.Diff(union, installed, cmp.Comparer(func(a, b session.Announcement) bool { return a == b })); d != "" {
			t.Fatalf("announced and installed:\n%s", d)
		}
		if len(installed) > 8 || p.Len() != len(installed) {
			t.Fatalf("%d installed, %d counted", len(installed), p.Len())
		}
	}
}

func TestAnnounceMedia(t *testing.T) {
	flow := session.Key{Client: at("192.0.2.7:40001"), Server: at("203.0.113.10:554"), Protocol: 6}
	media := func(rtp, rtcp uint16) *Stream { return &Stream{Transport: RTP, RTP: port(rtp), RTCP: port(rtcp)} }
	several := func(rtp, rtcp uint16, n uint8) *Stream { s := media(rtp, rtcp); s.Pairs = n; return s }
	for _, c := range []struct {
		name           string
		client, server *Stream
		mux, open      bool
		want           [][2]uint16
	}{
		{"both", media(10, 11), media(20, 21), false, false, [][2]uint16{{10, 20}, {11, 21}}},
		{"one port", media(10, 11), media(20, 21), true, false, [][2]uint16{{10, 20}}},
		{"open", media(10, 11), media(20, 21), false, true, [][2]uint16{{0, 20}, {0, 21}}},
		{"server unknown", media(10, 11), media(0, 0), false, false, [][2]uint16{{10, 0}, {11, 0}}},
		{"nothing known", media(0, 0), media(0, 0), false, false, nil},
		{"open to nothing", media(10, 11), media(0, 21), false, true, [][2]uint16{{0, 21}}},
		{"two pairs", several(10, 11, 2), several(20, 21, 3), false, false, [][2]uint16{{10, 20}, {11, 21}, {12, 22}, {13, 23}}},
		{"one has one", several(10, 11, 2), media(20, 21), false, false, [][2]uint16{{10, 20}, {11, 21}}},
		{"past the end", several(65534, 65535, 2), several(20, 21, 2), false, false, [][2]uint16{{65534, 20}, {65535, 21}, {0, 22}, {0, 23}}},
	} {
		var got [][2]uint16
		for _, a := range AnnounceMedia(nil, flow, c.client, c.server, c.mux, c.open) {
			got = append(got, [2]uint16{a.Client.Port(), a.Server.Port()})
			if a.Protocol != protoUDP || a.Client.Addr() != flow.Client.Addr() || a.Server.Addr() != flow.Server.Addr() {
				t.Errorf("%s: %+v", c.name, a)
			}
		}
		if d := cmp.Diff(c.want, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, d)
		}
	}
}
