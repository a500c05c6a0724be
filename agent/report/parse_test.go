// SPDX-License-Identifier: Apache-2.0

package report

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func file(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestParse reads what a Linux 6.18 wrote.
func TestParse(t *testing.T) {
	// 983421+11035+671185+0+120883+3778 = 1790302 of that and 2548318 idle, 3220 waiting for disks.
	if got, err := parseStat(file(t, "stat")); err != nil || got != (cpuTimes{busy: 1_790_302, total: 4_341_840}) {
		t.Errorf("stat: %+v, %v", got, err)
	}
	if got, err := parseMeminfo(file(t, "meminfo")); err != nil || got != (memory{total: 24_684_092, available: 24_059_864}) {
		t.Errorf("meminfo: %+v, %v", got, err)
	}
	for protocol, want := range map[string]uint64{"TCP": 124, "UDP": 0} {
		if got, err := parseSockstat(file(t, "sockstat"), protocol); err != nil || got != want {
			t.Errorf("sockstat: %s: %v, %v, want %v", protocol, got, err, want)
		}
	}
	if got, err := parseLimit("287901\t383868\t575802\n"); err != nil || got != 575_802 {
		t.Errorf("tcp_mem: %v, %v", got, err)
	}
	for which, want := range map[string]time.Duration{"some": 47_067_626 * time.Microsecond, "full": 20_690_398 * time.Microsecond} {
		if got, err := parsePressure(file(t, "pressure"), which); err != nil || got != want {
			t.Errorf("pressure: %s: %v, %v, want %v", which, got, err, want)
		}
	}
	want := map[string]uint32{"loop0": 0, "vda": 61_240, "vda1": 61_100}
	if got, err := parseDiskstats(file(t, "diskstats")); err != nil || !cmp.Equal(want, got) {
		t.Errorf("diskstats: %v, %v, want %v", got, err, want)
	}
}

// TestParseRefuses holds that what is cut off or something else is an error, and no number.
func TestParseRefuses(t *testing.T) {
	for name, parse := range map[string]func(string) error{
		"stat":      func(s string) error { _, err := parseStat(s); return err },
		"meminfo":   func(s string) error { _, err := parseMeminfo(s); return err },
		"sockstat":  func(s string) error { _, err := parseSockstat(s, "TCP"); return err },
		"limit":     func(s string) error { _, err := parseLimit(s); return err },
		"pressure":  func(s string) error { _, err := parsePressure(s, "some"); return err },
		"diskstats": func(s string) error { _, err := parseDiskstats(s); return err },
	} {
		for _, text := range []string{
			"nonsense", "cpu 1 2 3", "cpu 1 2 3 4 5 6 7 -8", "MemTotal: 5 kB\nMemAvailable: 6 kB", "MemTotal: 5 MB", "MemTotal: 5 kB",
			"TCP: inuse 5 mem", "TCP: mem x", "1 2", "1 2 0", "a b c", "some avg10=0.00", "some total=-1", "some total=99999999999999999999",
			"7 0 loop0 0 0 0 0 0 0 0 0 0 x 0",
		} {
			if err := parse(text); !errors.Is(err, errFormat) {
				t.Errorf("%s: %q: %v", name, text, err)
			}
		}
	}
}

// diagMessage is an inet_diag_msg of a listener.
func diagMessage(addr netip.AddrPort, waiting, room uint32) []byte {
	b := make([]byte, diagSize)
	b[0], b[1] = familyIPv4, stateListen
	if addr.Addr().Is6() {
		b[0] = familyIPv6
	}
	binary.BigEndian.PutUint16(b[diagPort:], addr.Port())
	copy(b[diagAddress:], addr.Addr().AsSlice())
	binary.NativeEndian.PutUint32(b[diagWaiting:], waiting)
	binary.NativeEndian.PutUint32(b[diagRoom:], room)
	return b
}

func TestParseListener(t *testing.T) {
	for _, text := range []string{"192.0.2.1:80", "0.0.0.0:1", "[2001:db8::1]:443", "[::]:65535"} {
		addr := netip.MustParseAddrPort(text)
		got, err := parseListener(diagMessage(addr, 3, 128))
		if d := cmp.Diff(listener{addr, 3, 128}, got, cmp.AllowUnexported(listener{}), cmpopts.EquateComparable(netip.AddrPort{})); d != "" || err != nil {
			t.Errorf("%s: %v (-want +got):\n%s", text, err, d)
		}
	}
	good := diagMessage(netip.MustParseAddrPort("192.0.2.1:80"), 0, 1)
	established, unix := append([]byte(nil), good...), append([]byte(nil), good...)
	established[1], unix[0] = 1, 1
	for name, b := range map[string][]byte{"cut off": good[:diagSize-1], "established": established, "another family": unix} {
		if l, err := parseListener(b); !errors.Is(err, errFormat) {
			t.Errorf("%s: %+v, %v", name, l, err)
		}
	}
}

func TestListenerServes(t *testing.T) {
	for _, tt := range []struct {
		listens, at string
		want        bool
	}{
		{"192.0.2.1:80", "192.0.2.1:80", true},
		{"192.0.2.1:80", "192.0.2.1:81", false},
		{"192.0.2.1:80", "192.0.2.2:80", false},
		{"0.0.0.0:80", "192.0.2.1:80", true},
		{"0.0.0.0:80", "[2001:db8::1]:80", false},
		{"[::]:80", "[2001:db8::1]:80", true},
		{"[::]:80", "192.0.2.1:80", true},
		{"[2001:db8::1]:80", "[2001:db8::1]:80", true},
		{"192.0.2.1:80", "[::ffff:192.0.2.1]:80", true},
	} {
		l := listener{addr: netip.MustParseAddrPort(tt.listens)}
		if got := l.serves(netip.MustParseAddrPort(tt.at)); got != tt.want {
			t.Errorf("a listener of %s serves %s: %v", tt.listens, tt.at, got)
		}
	}
}

func FuzzProc(f *testing.F) {
	for _, name := range []string{"stat", "meminfo", "sockstat", "pressure", "diskstats"} {
		f.Add(file(f, name))
	}
	f.Fuzz(func(t *testing.T, text string) {
		if c, err := parseStat(text); err == nil && c.busy > c.total {
			t.Errorf("%+v", c)
		}
		if m, err := parseMeminfo(text); err == nil && m.available > m.total {
			t.Errorf("%+v", m)
		}
		if d, err := parsePressure(text, "some"); err == nil && d < 0 {
			t.Error(d)
		}
		if l, err := parseLimit(text); err == nil && l == 0 {
			t.Error("no limit")
		}
		_, _ = parseSockstat(text, "TCP")
		if disks, err := parseDiskstats(text); err == nil && len(disks) > strings.Count(text, "\n")+1 {
			t.Errorf("%d disks", len(disks))
		}
	})
}

func FuzzListeners(f *testing.F) {
	m := diagMessage(netip.MustParseAddrPort("[2001:db8::1]:443"), 3, 128)
	header := make([]byte, 16)
	binary.NativeEndian.PutUint32(header, uint32(16+len(m)))
	binary.NativeEndian.PutUint16(header[4:], 20)
	f.Add(append(header, m...))
	f.Fuzz(func(t *testing.T, b []byte) {
		all, _, err := parseAnswer(nil, b)
		if err == nil && len(all) > len(b)/diagSize {
			t.Errorf("%d listeners in %d bytes", len(all), len(b))
		}
		for _, l := range all {
			if fill := l.fill(); fill < 0 || fill > 1 {
				t.Errorf("%+v: %v", l, fill)
			}
		}
	})
}
