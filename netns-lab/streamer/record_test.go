// SPDX-License-Identifier: Apache-2.0

package streamer

import (
	"encoding/json"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func sample() record {
	return record{
		Understood: 7, Input: []byte("OPT"), Reply: []byte("RTSP/1.0 200 OK\r\n\r\n"), Base: 3, Session: "ab", Mode: playing,
		Client: netip.MustParseAddrPort("192.0.2.1:50000"), Server: netip.MustParseAddrPort("203.0.113.10:8000"),
		Sent:     outgoing{SSRC: 1, Sequence: 65535, Timestamp: 4294967295, Due: time.Unix(1000, 5).UTC(), Report: time.Unix(1001, 0).UTC(), Packets: 9},
		Received: incoming{RTP: 4, RTCP: 2, Next: 8, Missing: 1, Late: 3},
	}
}

func TestRecord(t *testing.T) {
	state, err := json.Marshal(sample())
	if err != nil {
		t.Fatal(err)
	}
	got, err := parseRecord(state)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(sample(), got, cmpopts.EquateComparable(netip.AddrPort{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for name, spoil := range map[string]func(*record){
		"unknown mode":    func(r *record) { r.Mode = "sing" },
		"no addresses":    func(r *record) { r.Client, r.Server = netip.AddrPort{}, netip.AddrPort{} },
		"one address":     func(r *record) { r.Mode, r.Server = idle, netip.AddrPort{} },
		"odd port":        func(r *record) { r.Server = netip.MustParseAddrPort("203.0.113.10:8001") },
		"too large input": func(r *record) { r.Input = make([]byte, maxRequest+1) },
	} {
		r := sample()
		spoil(&r)
		state, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parseRecord(state); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

// TestIncoming counts sequence numbers over their end.
func TestIncoming(t *testing.T) {
	for _, tt := range []struct {
		name                string
		sequence            []uint16
		next                uint16
		rtp, missing, never int
	}{
		{"in order", []uint16{65534, 65535, 0, 1}, 2, 4, 0, 0},
		{"two missing", []uint16{65534, 1, 2}, 3, 3, 2, 0},
		{"late", []uint16{10, 12, 11, 13}, 14, 4, 0, 1},
	} {
		var r incoming
		for _, n := range tt.sequence {
			r.take(n)
		}
		if want := (incoming{RTP: tt.rtp, Next: tt.next, Missing: tt.missing, Late: tt.never}); r != want {
			t.Errorf("%s: %+v, want %+v", tt.name, r, want)
		}
	}
}

func TestNextRequest(t *testing.T) {
	const one, two = "OPTIONS rtsp://a/ RTSP/1.0\r\nCSeq: 1\r\n\r\n", "ANNOUNCE rtsp://a/ RTSP/1.0\r\nCSeq: 2\r\nContent-Length: 3\r\n\r\nv=0"
	both := one + "\r\n" + two
	r, rest, err := nextRequest([]byte(both))
	if err != nil || r.Method != "OPTIONS" || string(rest) != "\r\n"+two {
		t.Fatalf("%v, rest %q, %v", r, rest, err)
	}
	for n := range len(rest) {
		if _, left, err := nextRequest(rest[:n]); !errors.Is(err, errIncomplete) || !strings.HasSuffix("\r\n"+two[:max(n-2, 0)], string(left)) {
			t.Fatalf("%d bytes of a request: rest %q, %v", n, left, err)
		}
	}
	if r, rest, err = nextRequest(rest); err != nil || r.Method != "ANNOUNCE" || len(rest) != 0 || string(r.Body) != "v=0" {
		t.Errorf("%v, rest %q, %v", r, rest, err)
	}
	if _, _, err := nextRequest([]byte(strings.Repeat("A", 2*maxRequest))); err == nil || errors.Is(err, errIncomplete) {
		t.Errorf("a request without end: %v", err)
	}
}

func FuzzNextRequest(f *testing.F) {
	f.Add([]byte("OPTIONS rtsp://a/ RTSP/1.0\r\nCSeq: 1\r\n\r\n"))
	f.Add([]byte("\r\n"))
	f.Fuzz(func(t *testing.T, input []byte) {
		r, rest, err := nextRequest(input)
		if len(rest) > len(input) || err == nil && (r == nil || len(rest) == len(input)) {
			t.Errorf("rest of %d bytes of %d, %v", len(rest), len(input), err)
		}
	})
}

func FuzzParseRecord(f *testing.F) {
	state, _ := json.Marshal(sample())
	f.Add(state)
	f.Fuzz(func(t *testing.T, state []byte) {
		if r, err := parseRecord(state); err == nil && r.Mode != idle && !r.media() {
			t.Errorf("%+v", r)
		}
	})
}
