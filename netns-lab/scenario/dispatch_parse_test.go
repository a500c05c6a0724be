// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"encoding/binary"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const wrkReport = `Running 1s test @ http://10.77.0.12:80/small
  2 threads and 32 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     0.99ms    0.86ms  15.86ms   93.11%
    Req/Sec    11.81k     1.02k   13.93k    75.00%
  Latency Distribution
     50%  930.00us
     75%    1.16ms
     90%    1.61ms
     99%    2.93ms
  23481 requests in 1.00s, 6.51MB read
`

func TestParseWrk(t *testing.T) {
	good := Load{Requests: 23481, PerSecond: 23480.5, Median: 930, P99: 2930}
	failed := good
	failed.SocketErrors, failed.BadStatus = 10, 7
	for _, tt := range []struct {
		name, text string
		want       Load
		bad        bool
	}{
		{name: "good", text: wrkReport + "Requests/sec:  23480.50\nTransfer/sec:      6.51MB\n", want: good},
		{
			name: "errors", want: failed,
			text: wrkReport + "  Socket errors: connect 1, read 2, write 3, timeout 4\n  Non-2xx or 3xx responses: 7\nRequests/sec:  23480.50\n",
		},
		{name: "cut off", text: wrkReport, bad: true},
		{name: "empty", bad: true},
		{name: "too many errors", text: wrkReport + "Socket errors: connect 99999999999999999999, read 0, write 0, timeout 0\nRequests/sec: 1\n", bad: true},
		{name: "no time", text: "50% soon\n" + wrkReport + "Requests/sec: 1\n", bad: true},
	} {
		got, err := parseWrk(strings.NewReader(tt.text))
		if (err != nil) != tt.bad {
			t.Errorf("%s: error %v", tt.name, err)
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s: %s", tt.name, diff)
		}
	}
}

func FuzzParseWrk(f *testing.F) {
	f.Add(wrkReport + "Requests/sec:  23480.50\n")
	f.Add("Socket errors: connect 1, read 2, write 3, timeout 4")
	f.Fuzz(func(t *testing.T, text string) {
		l, err := parseWrk(strings.NewReader(text))
		if err != nil && l != (Load{}) {
			t.Errorf("%v, and %+v", err, l)
		}
	})
}

func TestParseStat(t *testing.T) {
	for _, tt := range []struct {
		text  string
		group int
		state string
		bad   bool
	}{
		{text: "7 (nginx) S 1 6 6 0 -1", group: 6, state: "S"},
		{text: "7 (a) R 9 (b) Z 1 8 6 0", group: 8, state: "Z"},
		{text: "7 (nginx) S 1", bad: true},
		{text: "", bad: true},
		{text: "7 (nginx) S 1 x 6", state: "S", bad: true},
	} {
		group, state, err := parseStat(tt.text)
		if group != tt.group || state != tt.state || (err != nil) != tt.bad {
			t.Errorf("%q: %d %q %v", tt.text, group, state, err)
		}
	}
}

func TestParseMachineTime(t *testing.T) {
	got, err := parseMachineTime([]byte("cpu  1 2 4 1000 2000 8 16 32 0 0\ncpu0 9 9 9 9 9 9 9 9 9 9\n"))
	if want := 630 * time.Millisecond; err != nil || got != want {
		t.Errorf("%v %v, want %v", got, err, want)
	}
	for _, text := range []string{"", "cpu 1 2 3", "cpu0 1 2 3 4 5 6 7 8", "cpu 1 2 x 4 5 6 7 8"} {
		if got, err := parseMachineTime([]byte(text)); err == nil {
			t.Errorf("%q: %v", text, got)
		}
	}
}

func TestParseCurl(t *testing.T) {
	got, err := parseCurl([]byte("1000000 125000000"))
	if diff := cmp.Diff(DownloadCost{Bytes: 1000000, MegabitsPerS: 1000}, got); err != nil || diff != "" {
		t.Error(err, diff)
	}
	for _, text := range []string{"", "1", "x 1", "1 x", "1 2 3"} {
		if got, err := parseCurl([]byte(text)); err == nil {
			t.Errorf("%q: %+v", text, got)
		}
	}
}

func TestParseAnonymous(t *testing.T) {
	got, err := parseAnonymous([]byte("00400000-7fff [rollup]\nRss:  100 kB\nPss:   12 kB\nPss_Anon: 3 kB\n"))
	if err != nil || got != 3<<10 {
		t.Error(got, err)
	}
	if got, err := parseAnonymous([]byte("Rss: 100 kB\n")); err == nil {
		t.Error(got)
	}
}

// TestOwnUsage looks at this process: its processor time grows with its work, and what it opens is counted.
func TestOwnUsage(t *testing.T) {
	self := []int{os.Getpid()}
	before, err := cpuTime(self)
	if err != nil {
		t.Fatal(err)
	}
	after := before
	for begin := time.Now(); after-before < 10*time.Millisecond; { // this is the work
		if time.Since(begin) > 10*time.Second {
			t.Fatalf("%v after 10 s of work", after-before)
		}
		if after, err = cpuTime(self); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := cpuTime([]int{1 << 22}); err == nil {
		t.Error("the processor time of a process that cannot be")
	}
	if m, err := memory(self); err != nil || m < 1<<20 {
		t.Errorf("%d bytes: %v", m, err)
	}
}

func TestParseTurn(t *testing.T) {
	const size = 1_000_000_000
	for _, tt := range []struct {
		name, text string
		want       float64
		bad        string
	}{
		{name: "good", text: "1000000000 0.5 1\n1000000000 1.5 0\n", want: 8000},
		{name: "one is missing", text: "1000000000 0.5 1\n", bad: "1 downloads, want 2"},
		{name: "cut short", text: "1000000000 0.5 1\n999999999 1.5 0\n", bad: "download 1"},
		{name: "a second connection", text: "1000000000 0.5 1\n1000000000 1.5 1\n", bad: "want 1000000000 bytes and 0 new connections"},
		{name: "no number", text: "1000000000 fast 1\n1000000000 1.5 0\n", bad: "fast"},
		{name: "empty", bad: "downloads"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := parseTurn([]byte(tt.text), size, 2)
			switch {
			case tt.bad != "":
				if err == nil || !strings.Contains(err.Error(), tt.bad) {
					t.Errorf("%v, want %q", err, tt.bad)
				}
			case err != nil || got != tt.want:
				t.Errorf("%v, %v; want %v", got, err, tt.want)
			}
		})
	}
}

func TestPercent(t *testing.T) {
	for _, tt := range []struct {
		name      string
		rates, of []float64
		want      []float64
	}{
		{"none", nil, nil, []float64{}},
		{"turn by turn", []float64{90, 40, 300}, []float64{100, 50, 200}, []float64{90, 80, 150}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if d := cmp.Diff(tt.want, Percent(tt.rates, tt.of)); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestPayloadFrom(t *testing.T) {
	const port = 40312
	segment := func(payload int) []byte {
		b := make([]byte, 14+20+32+payload)
		b[12], b[13], b[14], b[23] = 0x08, 0x00, 0x45, 6
		binary.BigEndian.PutUint16(b[16:], uint16(20+32+payload))
		binary.BigEndian.PutUint16(b[34:], port)
		b[46] = 8 << 4
		return b
	}
	with := func(at int, v byte) []byte {
		b := segment(7)
		b[at] = v
		return b
	}
	for _, tt := range []struct {
		name  string
		frame []byte
		want  int
		ours  bool
	}{
		{"acknowledgement", segment(0), 0, true},
		{"padded to what Ethernet wants", append(segment(0), 0, 0), 0, true},
		{"data", segment(7), 7, true},
		{"from another port", with(34, 0), 7, false},
		{"IPv6", with(13, 0xdd), 0, false},
		{"UDP", with(23, 17), 0, false},
		{"IP options", with(14, 0x46), 0, false},
		{"cut", segment(0)[:50], 0, false},
		{"empty", nil, 0, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if n, ours := payloadFrom(tt.frame, port); n != tt.want || ours != tt.ours {
				t.Errorf("%d, %v; want %d, %v", n, ours, tt.want, tt.ours)
			}
		})
	}
}
