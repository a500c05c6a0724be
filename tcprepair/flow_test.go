// SPDX-License-Identifier: Apache-2.0

package tcprepair

import (
	"encoding/json"
	"net/netip"
	"testing"
)

func TestFlow(t *testing.T) {
	for _, c := range []struct {
		local, remote string
		text          string
		valid         bool
	}{
		{"198.51.100.1:443", "192.0.2.7:40312", "192.0.2.7:40312-198.51.100.1:443", true},
		{"[2001:db8::1]:443", "[2001:db8::7]:40312", "[2001:db8::7]:40312-[2001:db8::1]:443", true},
		{"[::ffff:198.51.100.1]:443", "[::ffff:192.0.2.7]:1", "192.0.2.7:1-198.51.100.1:443", true},
		{"[fe80::1%eth0]:443", "[fe80::2%eth0]:1", "[fe80::2]:1-[fe80::1]:443", true},
		{"198.51.100.1:443", "[2001:db8::7]:40312", "[2001:db8::7]:40312-198.51.100.1:443", false},
		{"198.51.100.1:0", "192.0.2.7:40312", "192.0.2.7:40312-198.51.100.1:0", false},
	} {
		f := NewFlow(netip.MustParseAddrPort(c.local), netip.MustParseAddrPort(c.remote))
		if f.String() != c.text || f.IsValid() != c.valid {
			t.Errorf("%s, valid %t; want %s, %t", f, f.IsValid(), c.text, c.valid)
		}
		back, err := ParseFlow(c.text)
		if c.valid && (err != nil || back != f) || !c.valid && err == nil {
			t.Errorf("parse %s: %v, %v", c.text, back, err)
		}
		var decoded Flow
		b, err := json.Marshal(f)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(b, &decoded); (err == nil) != c.valid || c.valid && decoded != f {
			t.Errorf("%s became %v: %v", b, decoded, err)
		}
	}
	for _, s := range []string{"", "-", "192.0.2.7:1", "192.0.2.7-198.51.100.1:443", "192.0.2.7:1-198.51.100.1", "a:1-b:2"} {
		if f, err := ParseFlow(s); err == nil {
			t.Errorf("%q is %v", s, f)
		}
	}
	if (Flow{}).IsValid() {
		t.Error("the zero flow is valid")
	}
}

func FuzzParseFlow(f *testing.F) {
	f.Add("192.0.2.7:40312-198.51.100.1:443")
	f.Add("[2001:db8::7]:40312-[2001:db8::1]:443")
	f.Fuzz(func(t *testing.T, s string) {
		flow, err := ParseFlow(s)
		if err != nil {
			return
		}
		if back, err := ParseFlow(flow.String()); err != nil || back != flow {
			t.Errorf("%q is %v, which is %v: %v", s, flow, back, err)
		}
	})
}
