// SPDX-License-Identifier: Apache-2.0

package health

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	netnslab "github.com/rehome-net/rehome/netns-lab"
	"github.com/rehome-net/rehome/netns-lab/labtest"
)

// TestPath: from the entry, which has the virtual address itself and answers at it, each server is asked at that address, by HTTP and UDP,
// over both IP versions.
func TestPath(t *testing.T) {
	topo := netnslab.Standard(3)
	lab := labtest.New(t, topo)
	entry := labtest.Host(t, lab, "entry")
	servers := []string{"a", "b", "c"}
	for _, name := range append(servers, "entry") {
		host := labtest.Host(t, lab, name)
		for _, vip := range topo.VIPs {
			serveName(t, host, netip.AddrPortFrom(vip, 80), name == "c")
		}
	}
	// What a host may have: only answers by the way that the question would take.
	for _, name := range []string{"all", "default"} {
		if err := entry.SetSysctl("net.ipv4.conf."+name+".rp_filter", "1"); err != nil {
			t.Fatal(err)
		}
	}
	var path *Path
	err := entry.Do(func() (err error) {
		path, err = OpenPath(PathConfig{Interface: netnslab.Interface, Addresses: []netip.Prefix{
			netip.MustParsePrefix("10.77.0.250/24"), netip.MustParsePrefix("fd77::250/64"),
		}})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, vip := range topo.VIPs {
		at := netip.AddrPortFrom(vip, 80)
		for range 2 { // also when the route is there already
			for _, name := range servers {
				host := labtest.Host(t, lab, name)
				own := host.Addr4()
				if vip.Is6() {
					own = host.Addr6()
				}
				dial, err := path.To(own)
				if err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				err = newProber(t, ProbeConfig{Kind: HTTP, Body: "I am " + name}).Probe(ctx, dial, at)
				if ill := name == "c"; (err != nil) != ill || ill && !strings.Contains(err.Error(), "status 503") {
					t.Errorf("%v at %s: %v", at, name, err)
				}
				if err := newProber(t, ProbeConfig{Kind: UDP, Send: []byte("who"), Receive: []byte("I am " + name)}).Probe(ctx, dial, at); err != nil {
					t.Errorf("%v at %s: %v", at, name, err)
				}
				cancel()
			}
		}
	}
	// A host that is not there, and a path that is not there any more.
	dial, err := path.To(netip.MustParseAddr("10.77.0.240"))
	if err != nil {
		t.Fatal(err)
	}
	at := netip.AddrPortFrom(topo.VIP4(), 80)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := newProber(t, ProbeConfig{Kind: TCP}).Probe(ctx, dial, at); err == nil {
		t.Error("somebody answers for a host that is not there")
	}
	if err := path.Close(); err != nil {
		t.Error(err)
	}
	if _, err := dial(t.Context(), "tcp", at.String()); err == nil {
		t.Error("a closed path leads somewhere")
	}
	if _, err := path.To(netip.MustParseAddr("10.77.0.11")); err == nil {
		t.Error("a closed path leads somewhere")
	}
}

// serveName tells who serves at an address, over TCP and UDP.
func serveName(t *testing.T, host *netnslab.Host, at netip.AddrPort, ill bool) {
	t.Helper()
	ln, err := host.Listen(t.Context(), "tcp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{ReadHeaderTimeout: patience, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if ill {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		fmt.Fprintf(w, "I am %s, asked by %s", host.Name(), r.RemoteAddr)
	})}
	go server.Serve(ln)
	conn, err := host.ListenPacket(t.Context(), "udp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		b := make([]byte, 100)
		for {
			_, from, err := conn.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = conn.WriteTo([]byte("I am "+host.Name()), from)
		}
	}()
	t.Cleanup(func() {
		_ = server.Close()
		_ = conn.Close()
	})
}

func TestPathConfig(t *testing.T) {
	address := []netip.Prefix{netip.MustParsePrefix("192.0.2.250/24")}
	for want, c := range map[string]PathConfig{
		"interface: missing":   {Addresses: address},
		"addresses: missing":   {Interface: "lo"},
		"addresses: 0.0.0.0/0": {Interface: "lo", Addresses: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}},
	} {
		if _, err := OpenPath(c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", c, err, want)
		}
	}
	labtest.RequireRoot(t)
	for _, name := range []string{"rhnone", "lo"} { // not there, and no Ethernet
		p, err := OpenPath(PathConfig{Interface: name, Addresses: address})
		if err == nil {
			_ = p.Close()
			t.Errorf("a path over %s", name)
		}
	}
	var _ Dialer = (&net.Dialer{}).DialContext
}
