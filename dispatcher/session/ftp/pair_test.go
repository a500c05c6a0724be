// SPDX-License-Identifier: Apache-2.0

package ftp

import (
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"github.com/rehome-net/rehome/dispatcher/session/inspect"
	"github.com/rehome-net/rehome/dispatcher/session/inspect/inspecttest"
)

// TestAnyOrder mixes the two sides of transcripts without ABOR: it ends what was announced before it, which is the order.
func TestAnyOrder(t *testing.T) {
	random := rand.New(rand.NewPCG(5, 6))
	for name, text := range inspecttest.Transcripts(t) {
		if strings.Contains(name, "active") || strings.Contains(name, "ipv6") || strings.Contains(name, "refused") {
			text, _, _ = strings.Cut(text, "IAC DM in front")
			text, _, _ = strings.Cut(text, "\n> ABOR")
			text, _, _ = strings.Cut(text, "\n< 421")
		}
		if left := inspecttest.AnyOrder(t, inspector(), text, random); left == "" && !strings.Contains(name, "encrypted") && !strings.Contains(name, "passive") {
			t.Errorf("%s leaves nothing", name)
		}
	}
}

func half(side inspect.Side, method inspect.Method, status uint16, address string) inspect.Half {
	h := inspect.Half{Protocol: inspect.FTP, Side: side, Flow: testFlow(), Method: method, Status: status}
	if address != "" {
		h.Streams = []inspect.Stream{{Transport: inspect.TCP, RTP: netip.MustParseAddrPort(address)}}
	}
	return h
}

// TestPair has what transcripts cannot say: halves that no parser makes.
func TestPair(t *testing.T) {
	for _, c := range []struct {
		name   string
		half   inspect.Half
		reason inspect.Reason
	}{
		{"another protocol", inspect.Half{Protocol: inspect.SIP, Side: inspect.Client, Method: inspect.Port}, inspect.Misplaced},
		{"no protocol", inspect.Half{}, inspect.Misplaced},
		{"a port without one", half(inspect.Client, inspect.Port, 0, ""), inspect.Misplaced},
		{"another's command", half(inspect.Client, inspect.Invite, 0, ""), inspect.Misplaced},
		{"a reply by the client", half(inspect.Client, inspect.None, replyPassive, "203.0.113.10:40000"), inspect.Misplaced},
		{"a port of the server's", half(inspect.Server, inspect.Port, 0, "192.0.2.7:50000"), 0},
		{"a reply without a port", half(inspect.Server, inspect.None, replyPassive, ""), inspect.Misplaced},
		{"a reply with port 0", half(inspect.Server, inspect.None, replyExtendedPassive, "203.0.113.10:0"), inspect.Misplaced},
	} {
		p, err := NewPair(Config{})
		if err != nil {
			t.Fatal(err)
		}
		o := p.Add(c.half)
		if len(o.Install) != 0 || (c.reason == 0) != (len(o.Findings) == 0) || c.reason != 0 && o.Findings[0].Reason != c.reason {
			t.Errorf("%s: %+v", c.name, o)
		}
	}
}

// TestEnd holds that nothing comes after the end, and that it comes once.
func TestEnd(t *testing.T) {
	p, err := NewPair(Config{})
	if err != nil {
		t.Fatal(err)
	}
	p.Add(half(inspect.Client, inspect.Port, 0, "192.0.2.7:50000"))
	p.Add(half(inspect.Server, inspect.None, replyPassive, "203.0.113.10:40000"))
	if o := p.Closed(testFlow()); !o.Ended || len(o.Withdraw) != 2 {
		t.Errorf("%+v", o)
	}
	if o := p.Closed(testFlow()); o.Ended || len(o.Withdraw) != 0 {
		t.Errorf("the second end: %+v", o)
	}
	if o := p.Add(half(inspect.Client, inspect.Port, 0, "192.0.2.7:50000")); len(o.Install) != 0 {
		t.Errorf("after the end: %+v", o)
	}
}

func BenchmarkFeed(b *testing.B) {
	for name, c := range map[string]struct {
		side inspect.Side
		line string
	}{
		"PORT": {inspect.Client, "PORT 192,0,2,7,195,80\r\n"},
		"RETR": {inspect.Client, "RETR some/path/to/a/file\r\n"},
		"227":  {inspect.Server, "227 Entering Passive Mode (203,0,113,10,156,90).\r\n"},
	} {
		b.Run(name, func(b *testing.B) {
			p := newParser(b, Config{}, c.side)
			stream := []byte(c.line)
			b.SetBytes(int64(len(stream)))
			b.ReportAllocs()
			for b.Loop() {
				p.Feed(stream)
			}
		})
	}
}

func BenchmarkPair(b *testing.B) {
	p, err := NewPair(Config{})
	if err != nil {
		b.Fatal(err)
	}
	one, two := half(inspect.Server, inspect.None, replyPassive, "203.0.113.10:40000"), half(inspect.Server, inspect.None, replyPassive, "203.0.113.10:40001")
	b.ReportAllocs()
	for b.Loop() {
		p.Add(one)
		p.Add(two)
	}
}
