// SPDX-License-Identifier: Apache-2.0

package session

import (
	"net/netip"
	"testing"
)

func TestPack(t *testing.T) {
	for _, c := range []struct {
		name, client, server string
		protocol             uint8
		want                 string // the key read back; empty: no flow
	}{
		{"v4", "198.51.100.1:1", "203.0.113.1:2", 6, "tcp 198.51.100.1:1 > 203.0.113.1:2"},
		{"v6", "[2001:db8::1]:1", "[2001:db8::2]:2", 17, "udp [2001:db8::1]:1 > [2001:db8::2]:2"},
		{"v4 in v6", "[::ffff:198.51.100.1]:1", "203.0.113.1:2", 17, "udp 198.51.100.1:1 > 203.0.113.1:2"},
		{"zone", "[fe80::1%eth0]:1", "[fe80::2]:2", 17, "udp [fe80::1]:1 > [fe80::2]:2"},
		{"open client", "198.51.100.1:0", "203.0.113.1:2", 17, "udp 198.51.100.1:* > 203.0.113.1:2"},
		{"open server", "[2001:db8::1]:1", "[2001:db8::2]:0", 17, "udp [2001:db8::1]:1 > [2001:db8::2]:*"},
		{"unspecified", "0.0.0.0:1", "203.0.113.1:2", 17, "udp 0.0.0.0:1 > 203.0.113.1:2"},
		{"mixed", "198.51.100.1:1", "[2001:db8::2]:2", 17, ""},
		{"mixed the other way", "[2001:db8::2]:2", "198.51.100.1:1", 17, ""},
		{"icmp", "198.51.100.1:1", "203.0.113.1:2", 1, ""},
		{"no client", "", "203.0.113.1:2", 17, ""},
		{"no server", "198.51.100.1:1", "", 17, ""},
		{"nothing", "", "", 17, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			key := Key{Protocol: c.protocol}
			if c.client != "" {
				key.Client = netip.MustParseAddrPort(c.client)
			}
			if c.server != "" {
				key.Server = netip.MustParseAddrPort(c.server)
			}
			var packed tuple
			ok := packed.pack(&key)
			if ok != (c.want != "") {
				t.Fatalf("a flow: %v, want %v", ok, !ok)
			}
			if ok && packed.key().String() != c.want {
				t.Errorf("got %v, want %s", packed.key(), c.want)
			}
		})
	}
}

func TestNext(t *testing.T) {
	for _, c := range [][4]uint16{{5004, 6970, 5005, 6971}, {0, 6970, 0, 6971}, {5004, 0, 5005, 0}, {65535, 1, 65535, 2}, {1, 65535, 2, 65535}} {
		got := tuple{ends: ends{clientPort: c[0], serverPort: c[1]}}.next()
		if got.clientPort != c[2] || got.serverPort != c[3] {
			t.Errorf("after %d > %d comes %d > %d, want %d > %d", c[0], c[1], got.clientPort, got.serverPort, c[2], c[3])
		}
	}
}

func TestClientOf(t *testing.T) {
	for address, want := range map[string]string{
		"198.51.100.1":             "198.51.100.1",
		"2001:db8:1:2:3:4:5:6":     "2001:db8:1:2::",
		"::ffff:198.51.100.1":      "198.51.100.1",
		"2001:db8:1:2:ffff:ffff::": "2001:db8:1:2::",
	} {
		got := clientOf(addressOf(netip.MustParseAddr(address))).ip()
		if got != netip.MustParseAddr(want) {
			t.Errorf("%s is of %v, want %s", address, got, want)
		}
	}
}
