// SPDX-License-Identifier: Apache-2.0

package sockops

import (
	"net/netip"
	"testing"

	"github.com/rehome-net/rehome/tcprepair"
)

// What the program writes, on a little-endian machine: addresses and words as they are, ports in host order.
const (
	record4 = "\x0a\x4d\x00\x64\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" +
		"\x0a\x4d\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" + "\x50\x00\x39\x30" + "\x04\x09\x00\x00"
	record6 = "\xfd\x77\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00" +
		"\xfd\x77\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01" + "\xbb\x01\x39\x30" + "\x06\x05\x00\x00"
)

func TestParseEnd(t *testing.T) {
	flow := func(local, remote string) tcprepair.Flow {
		return tcprepair.NewFlow(netip.MustParseAddrPort(local), netip.MustParseAddrPort(remote))
	}
	for _, c := range []struct {
		name, record string
		want         End
		ok           bool
	}{
		{"IPv4", record4, End{flow("10.77.0.100:80", "10.77.0.1:12345"), tcprepair.LastAck}, true},
		{"IPv6", record6, End{flow("[fd77::100]:443", "[fd77::1]:12345"), tcprepair.FinWait2}, true},
		{"longer, of a later program", record4 + "more", End{flow("10.77.0.100:80", "10.77.0.1:12345"), tcprepair.LastAck}, true},
		{"cut", record4[:39], End{}, false},
		{"empty", "", End{}, false},
	} {
		got, ok := parseEnd([]byte(c.record))
		if ok != c.ok || ok && got != c.want {
			t.Errorf("%s: %+v, %v; want %+v, %v", c.name, got, ok, c.want, c.ok)
		}
	}
}

func FuzzParseEnd(f *testing.F) {
	f.Add([]byte(record4))
	f.Add([]byte(record6))
	f.Fuzz(func(t *testing.T, b []byte) {
		if e, ok := parseEnd(b); ok && !e.Flow.IsValid() {
			t.Errorf("%v of % x", e.Flow, b)
		}
	})
}
