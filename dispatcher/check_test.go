// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/rehome-net/rehome/netns-lab/leakcheck"
)

// TestCheck looks at a configuration of which some things are right and others are not.
func TestCheck(t *testing.T) {
	leakcheck.Check(t, leakcheck.Config{})
	cfg := standing(t)
	cfg.Interfaces = append(cfg.Interfaces, "rhnone0")
	cfg.Pin = "/proc/pin"
	cfg.Services[0].Addresses = []netip.AddrPort{
		netip.MustParseAddrPort("127.0.0.1:80"), netip.MustParseAddrPort("127.0.0.1:81"), netip.MustParseAddrPort("198.51.100.77:80"),
		netip.MustParseAddrPort("127.9.9.9:80"),
	}
	cfg.Peers = []PeerConfig{
		{Name: "b1", Address: "127.0.0.1:7070", MAC: "02:00:5e:10:00:02"}, {Name: "b2", Address: "127.0.0.1:7071"},
	}
	read := valid(t, cfg)
	got := make(map[string]Finding)
	for _, f := range Check(&read) {
		if _, twice := got[f.What]; twice {
			t.Errorf("%s is looked at twice", f.What)
		}
		got[f.What] = f
		if !f.OK && f.Advice == "" {
			t.Errorf("%s: no advice", f.What)
		}
	}
	want := map[string]bool{
		"interface lo": true, "interface rhnone0": false, "pin": false, "tls": true, "control": true,
		"address 127.0.0.1 of web": true, "address 198.51.100.77 of web": false, "address 127.9.9.9 of web": true, "peer b1": true, "peer b2": false,
		"way out of lo": true, "way out of rhnone0": true,
	}
	if os.Geteuid() == 0 {
		want["TCP_REPAIR"] = true
	}
	for what, ok := range want {
		f, looked := got[what]
		if !looked || f.OK != ok {
			t.Errorf("%s: ok %v, want %v: %s", what, f.OK, ok, f.Detail)
		}
	}
	if f := got["pin"]; f.Optional {
		t.Errorf("a directory that cannot be pinned in is a note only: %+v", f)
	}
	read.Pin = pinOff
	if f := checkPin(read.PinPath()); f.OK || !f.Optional {
		t.Errorf("pin off: %+v", f)
	}
}

// TestCheckPath requires tcx of the kernel unless nftables forward.
func TestCheckPath(t *testing.T) {
	for mode, optional := range map[ForwardMode]bool{ForwardTCX: false, ForwardXDP: false, ForwardNFT: true} {
		found := checkPath(&Config{Forward: ForwardConfig{Mode: mode}})
		at := slices.IndexFunc(found, func(f Finding) bool { return f.What == "kernel has tcx" })
		if at < 0 || found[at].Optional != optional {
			t.Errorf("%s: %+v", mode, found)
		}
	}
}

// TestCheckShortcuts says why packets go the whole way; that they do is no fault.
func TestCheckShortcuts(t *testing.T) {
	cfg := Config{Interfaces: []string{"lo"}, Forward: ForwardConfig{Mode: ForwardTCX, Shortcut: ShortcutAuto}}
	for _, c := range []struct {
		mode     ForwardMode
		shortcut Shortcut
		want     string
	}{
		{ForwardTCX, ShortcutAuto, "packets leave by the interface itself: no shortcut: not one end of a veth pair: device"},
		{ForwardTCX, ShortcutOff, "packets leave by the interface itself: forward.shortcut is off"},
		{ForwardXDP, ShortcutAuto, ""},
		{ForwardNFT, ShortcutAuto, ""},
	} {
		cfg.Forward.Mode, cfg.Forward.Shortcut = c.mode, c.shortcut
		var details []string
		for _, f := range checkShortcuts(&cfg) {
			if !f.OK || !f.Optional {
				t.Errorf("%+v", f)
			}
			details = append(details, f.Detail)
		}
		if got := strings.Join(details, "; "); got != c.want {
			t.Errorf("%s, %s: %q, want %q", c.mode, c.shortcut, got, c.want)
		}
	}
}

// TestCheckRunning says that a dispatcher is running where the configuration says.
func TestCheckRunning(t *testing.T) {
	cfg := standing(t)
	if f := checkControl(&cfg); !f.OK || f.Detail != cfg.Control {
		t.Errorf("%+v", f)
	}
	start(t, cfg)
	if f := checkControl(&cfg); !f.OK || f.Detail == cfg.Control {
		t.Errorf("%+v", f)
	}
}
