// SPDX-License-Identifier: Apache-2.0

package inspect_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/rehome-net/rehome/dispatcher/session"
	"github.com/rehome-net/rehome/dispatcher/session/inspect"
	"github.com/rehome-net/rehome/dispatcher/session/sip"
)

const ringing = "SIP/2.0 180 Ringing\r\nFrom: <sip:a@h>;tag=a\r\nTo: <sip:b@h>;tag=b\r\nCall-ID: c\r\nCSeq: 1 INVITE\r\nContent-Length: 0\r\n\r\n"

func newEncoder(t *testing.T, protocol uint8, client string, middle bool) *inspect.Encoder {
	t.Helper()
	flow := session.Key{Client: netip.MustParseAddrPort(client), Server: netip.MustParseAddrPort("203.0.113.10:5060"), Protocol: protocol}
	parser, err := sip.NewParser(sip.Config{}, flow, inspect.Server)
	if err != nil {
		t.Fatal(err)
	}
	return inspect.NewEncoder(parser, flow, middle)
}

func TestEncoder(t *testing.T) {
	for _, c := range []struct {
		name     string
		protocol uint8
		middle   bool
		pieces   []string
		want     int
		resyncs  uint64
	}{
		{"a datagram", 17, false, []string{ringing}, 1, 0},
		{"datagrams have no middle", 17, true, []string{ringing}, 1, 0},
		{"half a datagram", 17, false, []string{ringing[:50], ringing[50:]}, 0, 0},
		{"a stream", 6, false, []string{ringing[:50], ringing[50:] + ringing}, 2, 0},
		{"a stream from its middle", 6, true, []string{"x\r\n", ringing}, 1, 1},
	} {
		e := newEncoder(t, c.protocol, "192.0.2.7:5060", c.middle)
		var got [][]byte
		for _, p := range c.pieces {
			got = append(got, e.Parse([]byte(p))...)
		}
		if len(got) != c.want || e.Stats().Resyncs != c.resyncs || e.Opaque() {
			t.Errorf("%s: %d halves, %+v", c.name, len(got), e.Stats())
		}
		for _, b := range got {
			if h, err := inspect.Decode(b); err != nil || h.Status != 180 || h.Session != "c" {
				t.Errorf("%s: %+v, %v", c.name, h, err)
			}
		}
	}
}

func TestEncoderGap(t *testing.T) {
	e := newEncoder(t, 6, "192.0.2.7:5060", false)
	e.Parse([]byte(ringing[:50]))
	e.Gap()
	if got := e.Parse([]byte("l: 0\r\n\r\n" + ringing)); len(got) != 1 {
		t.Errorf("%d halves", len(got))
	}
	if e.Parse([]byte("\x16\x03\x01")); !e.Opaque() {
		t.Error("not opaque")
	}
}

// TestEncoderLeavesOut has a flow whose address has no encoding: IPv4 in IPv6.
func TestEncoderLeavesOut(t *testing.T) {
	e := newEncoder(t, 17, "[::ffff:192.0.2.7]:5060", false)
	if got := e.Parse([]byte(strings.Clone(ringing))); len(got) != 0 {
		t.Errorf("%d halves", len(got))
	}
}
