// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"math"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/rehome-net/rehome/dispatcher/session"
)

var update = flag.Bool("update", false, "write the golden files anew") //nolint:gochecknoglobals // a flag

func comparer() cmp.Option { return cmpopts.EquateComparable(session.Key{}, Stream{}) }

func at(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

func port(n uint16) netip.AddrPort { return netip.AddrPortFrom(netip.Addr{}, n) }

// halves are one of each kind, by name.
var halves = []struct {
	name string
	half Half
}{
	{"setup", Half{
		Protocol: RTSP, Side: Client, Method: Setup, Seq: 3, Session: "1A2B3C4D", Target: Digest([]byte("rtsp://cam/1")),
		Flow: session.Key{Client: at("192.0.2.7:40001"), Server: at("203.0.113.10:554"), Protocol: 6},
		Streams: []Stream{
			{Transport: RTP, RTP: port(50000), RTCP: port(50001)},
			{Transport: Interleaved},
		},
	}},
	{"setup answered", Half{
		Protocol: RTSP, Side: Server, Status: 200, Seq: 3, Session: "1A2B3C4D", Timeout: time.Minute,
		Flow: session.Key{Client: at("192.0.2.7:40001"), Server: at("203.0.113.10:554"), Protocol: 6},
		Streams: []Stream{{
			Transport: RTP, RTP: at("203.0.113.10:6970"), RTCP: at("203.0.113.10:6971"),
			PeerRTP: port(50000), PeerRTCP: port(50001), Mux: true, Pairs: 2,
		}},
	}},
	{"prack", Half{
		Protocol: SIP, Side: Client, Method: Prack, Seq: 2, Ack: 1, Session: "call@a", From: "a1", To: "b1",
		Flow:    session.Key{Client: at("[2001:db8::7]:5060"), Server: at("[2001:db8:1::10]:5060"), Protocol: 17},
		Streams: []Stream{{Transport: RTP, RTP: at("[2001:db8::7]:40000"), RTCP: at("[2001:db8::7]:40001"), Open: true}, {}},
	}},
	{"passive", Half{
		Protocol: FTP, Side: Server, Status: 229,
		Flow:    session.Key{Client: at("192.0.2.7:40001"), Server: at("203.0.113.10:21"), Protocol: 6},
		Streams: []Stream{{Transport: TCP, RTP: port(40021)}},
	}},
	{"largest", largest()},
}

func largest() Half {
	full := at("[2001:db8::7]:40000")
	h := Half{
		Protocol: SIP, Side: Server, Method: Invite, Status: 699, Seq: math.MaxUint32, Ack: math.MaxUint32, Target: math.MaxUint64,
		Timeout: math.MaxUint32 * time.Second, Flow: session.Key{Client: full, Server: full, Protocol: 255},
		Session: strings.Repeat("s", MaxName), From: strings.Repeat("f", MaxName), To: strings.Repeat("t", MaxName),
	}
	for range MaxStreams {
		h.Streams = append(h.Streams, Stream{Unsupported, true, true, 255, full, full, full, full})
	}
	return h
}

// TestGolden holds the encoding: hosts of the same version must agree on it.
func TestGolden(t *testing.T) {
	var got strings.Builder
	for _, c := range halves {
		b, err := c.half.Append(nil)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		got.WriteString(c.name + "\n" + hex.Dump(b))
		back, err := Decode(b)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		if d := cmp.Diff(c.half, back, comparer()); d != "" {
			t.Errorf("%s (-sent +received):\n%s", c.name, d)
		}
		for n := range b {
			if _, err := Decode(b[:n]); !errors.Is(err, ErrTruncated) {
				t.Fatalf("%s: %d of %d bytes: %v", c.name, n, len(b), err)
			}
		}
		if _, err := Decode(append(b, 0)); !errors.Is(err, ErrTrailing) {
			t.Errorf("%s: a byte more: %v", c.name, err)
		}
	}
	const file = "testdata/half.golden"
	if *update {
		if err := os.WriteFile(file, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got.String()); d != "" {
		t.Errorf("encoding (-want +got):\n%s", d)
	}
}

func TestMaxEncoded(t *testing.T) {
	h := largest()
	b, err := h.Append(nil)
	if err != nil || len(b) != MaxEncoded {
		t.Errorf("the largest half has %d bytes, MaxEncoded is %d: %v", len(b), MaxEncoded, err)
	}
}

// TestAppendRefuses gives halves that no parser makes.
func TestAppendRefuses(t *testing.T) {
	for name, spoil := range map[string]func(h *Half){
		"protocol 0":     func(h *Half) { h.Protocol = 0 },
		"protocol":       func(h *Half) { h.Protocol = protocols },
		"side 0":         func(h *Half) { h.Side = 0 },
		"side":           func(h *Half) { h.Side = sides },
		"method":         func(h *Half) { h.Method = methods },
		"transport":      func(h *Half) { h.Streams[0].Transport = transports },
		"session":        func(h *Half) { h.Session += "x" },
		"from":           func(h *Half) { h.From += "x" },
		"to":             func(h *Half) { h.To += "x" },
		"streams":        func(h *Half) { h.Streams = append(h.Streams, Stream{}) },
		"timeout":        func(h *Half) { h.Timeout += time.Second },
		"part of second": func(h *Half) { h.Timeout = time.Millisecond },
		"negative":       func(h *Half) { h.Timeout = -time.Second },
		"zone":           func(h *Half) { h.Flow.Client = at("[fe80::1%eth0]:1") },
		"mapped":         func(h *Half) { h.Streams[3].PeerRTCP = at("[::ffff:192.0.2.7]:1") },
	} {
		h := largest()
		spoil(&h)
		if b, err := h.Append([]byte("x")); !errors.Is(err, ErrMalformed) || string(b) != "x" {
			t.Errorf("%s: %v, %d bytes", name, err, len(b))
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	good, err := halves[0].half.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	last := len(good) - 3 - 4*3 // the last stream, all of whose addresses are empty
	for _, c := range []struct {
		name  string
		at    int
		value byte
		want  error
	}{
		{"version", 0, Version + 1, ErrVersion},
		{"version 0", 0, 0, ErrVersion},
		{"protocol", 1, 9, ErrMalformed},
		{"side", 2, 3, ErrMalformed},
		{"method", 3, 200, ErrMalformed},
		{"family", fixedSize + 1, 5, ErrMalformed},
		{"transport", last, 99, ErrMalformed},
		{"flags", last + 1, 4, ErrMalformed},
		{"streams", last - 3 - 4*3 - 1, 200, ErrMalformed},
	} {
		b := slices.Clone(good)
		b[c.at] = c.value
		if _, err := Decode(b); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
	if _, err := Decode(nil); !errors.Is(err, ErrTruncated) {
		t.Errorf("nothing: %v", err)
	}
}

// FuzzDecode holds that each half has one encoding: what decodes, encodes to the same bytes.
func FuzzDecode(f *testing.F) {
	for _, c := range halves {
		b, err := c.half.Append(nil)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := Decode(b)
		if err != nil {
			if !errors.Is(err, ErrVersion) && !errors.Is(err, ErrTruncated) && !errors.Is(err, ErrTrailing) && !errors.Is(err, ErrMalformed) {
				t.Fatalf("error of no kind: %v", err)
			}
			return
		}
		again, err := h.Append(nil)
		if err != nil || !bytes.Equal(again, b) {
			t.Fatalf("%x came back as %x: %v", b, again, err)
		}
		if len(b) > MaxEncoded {
			t.Fatalf("%d bytes", len(b))
		}
	})
}

func BenchmarkAppend(b *testing.B) {
	buffer := make([]byte, 0, MaxEncoded)
	h := halves[1].half
	b.ReportAllocs()
	for b.Loop() {
		if _, err := h.Append(buffer); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDecode(b *testing.B) {
	message, err := halves[1].half.Append(nil)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Decode(message); err != nil {
			b.Fatal(err)
		}
	}
}
