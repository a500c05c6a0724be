// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/rehome-net/rehome/handoff/peer"
	netnslab "github.com/rehome-net/rehome/netns-lab"
)

// find returns the findings whose name contains what.
func find(found []Finding, what string) (list []Finding) {
	for _, f := range found {
		if strings.Contains(f.What, what) {
			list = append(list, f)
		}
	}
	return list
}

func TestCheck(t *testing.T) {
	r := newRig(t)
	c := r.config(t)
	c.Servers = append(c.Servers, HostConfig{Name: "b2", Address: "10.77.0.12"}, HostConfig{Name: "b3", Address: "10.77.0.13"})
	c.Interfaces = append(c.Interfaces, "nowhere")
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	ln, err := r.b1.Listen(t.Context(), "tcp", "10.77.0.11:7070")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c.Dispatcher.Address = "10.77.0.11:7070"
	var found []Finding
	if err := r.router.Do(func() error {
		found = Check(&c)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		what string
		ok   bool
	}{
		{"interface " + netnslab.Interface, true},
		{"interface nowhere", false},
		{"ip_forward", true},
		{"ipv6.conf.all.forwarding", true},
		{"reverse path filter of eth0", true},
		{"tls", true},
		{"dispatcher front", true},
		{"server b1", true},
		{"server b2", true},
		{"server b3", false},
		{"tcx", true},
		{"CAP_BPF", true},
	} {
		list := find(found, tt.what)
		if len(list) != 1 || list[0].OK != tt.ok || !tt.ok && list[0].Advice == "" {
			t.Errorf("%s: %+v, want one that is %v", tt.what, list, tt.ok)
		}
	}
	if len(find(found, "filesystem")) != 0 {
		t.Error("a file system is asked for where nothing is pinned")
	}
}

func TestCheckMissing(t *testing.T) {
	r := newRig(t)
	c := r.config(t)
	c.Plaintext, c.TLS = false, peer.Files{Certificate: "/nonexistent", Key: "/nonexistent", Authority: "/nonexistent"}
	c.Services = c.Services[:1]
	c.Services[0].Addresses = []netip.AddrPort{netip.AddrPortFrom(r.vip4, signalPort)}
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	if err := r.b2.SetSysctl("net.ipv4.conf.all.rp_filter", "1"); err != nil {
		t.Fatal(err)
	}
	var found []Finding
	if err := r.b2.Do(func() error { // which is no router
		c.Dispatcher.Address = "127.0.0.1:1"
		found = Check(&c)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for _, what := range []string{"ip_forward", "reverse path filter", "tls", "dispatcher front"} {
		if list := find(found, what); len(list) != 1 || list[0].OK || list[0].Advice == "" {
			t.Errorf("%s: %+v, want one that is not ok, with what to do", what, list)
		}
	}
	if len(find(found, "ipv6")) != 0 {
		t.Error("IPv6 is asked for")
	}
}
