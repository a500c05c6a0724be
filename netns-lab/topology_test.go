// SPDX-License-Identifier: Apache-2.0

package netnslab_test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	netnslab "github.com/rehome-net/rehome/netns-lab"
)

func TestStandardIsValidForEveryNumberOfServers(t *testing.T) {
	for n := range netnslab.MaxHosts - 1 {
		topo := netnslab.Standard(n)
		if err := topo.Validate(); err != nil {
			t.Fatalf("%d servers: %v", n, err)
		}
		if len(topo.Hosts) != n+2 {
			t.Fatalf("%d servers: %d hosts", n, len(topo.Hosts))
		}
	}
}

func TestTopologySurvivesJSON(t *testing.T) {
	topo := netnslab.Standard(2)
	topo.Impairments = []netnslab.HostImpairment{{Host: "client", Up: netnslab.Impairment{Loss: 0.5, Seed: 1 << 60}}}
	topo.Hosts[1].Sysctls = map[string]string{"net.ipv4.tcp_syncookies": "1"}
	data, err := json.Marshal(topo)
	if err != nil {
		t.Fatal(err)
	}
	var got netnslab.Topology
	if err := json.Unmarshal(data, &got); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(topo, got, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); d != "" {
		t.Errorf("after JSON (-want +got):\n%s", d)
	}
}

func TestTopologyValidate(t *testing.T) {
	addr := netip.MustParseAddr
	for _, test := range []struct {
		name   string
		change func(*netnslab.Topology)
		want   string
	}{
		{"no name", func(t *netnslab.Topology) { t.Name = "" }, "lab name"},
		{"name with a slash", func(t *netnslab.Topology) { t.Name = "a/b" }, "lab name"},
		{"name that ends in a hyphen", func(t *netnslab.Topology) { t.Name = "a-" }, "lab name"},
		{"no hosts", func(t *netnslab.Topology) { t.Hosts = nil }, "0 hosts"},
		{"small mtu", func(t *netnslab.Topology) { t.MTU = 576 }, "mtu"},
		{"host with a hyphen", func(t *netnslab.Topology) { t.Hosts[2].Name = "web-1" }, "web-1"},
		{"long host", func(t *netnslab.Topology) { t.Hosts[2].Name = "abcdefghijklm" }, "12 at most"},
		{"two of a name", func(t *netnslab.Topology) { t.Hosts[2].Name = "client" }, "taken"},
		{"the switch's name", func(t *netnslab.Topology) { t.Hosts[2].Name = "switch" }, "taken"},
		{"no role", func(t *netnslab.Topology) { t.Hosts[2].Role = "" }, "role"},
		{"two entries", func(t *netnslab.Topology) { t.Hosts[2].Role = netnslab.RoleEntry }, "2 entries"},
		{"mapped address", func(t *netnslab.Topology) {
			t.Hosts[2].Addrs = []netip.Prefix{netip.PrefixFrom(addr("::ffff:1.2.3.4"), 120)}
		}, "mapped"},
		{"two of an address", func(t *netnslab.Topology) { t.Hosts[2].Addrs = t.Hosts[0].Addrs }, "client"},
		{"bad MAC", func(t *netnslab.Topology) { t.Hosts[2].MAC = "nonsense" }, "MAC"},
		{"group MAC", func(t *netnslab.Topology) { t.Hosts[2].MAC = "01:00:00:00:00:01" }, "group"},
		{"two of a MAC", func(t *netnslab.Topology) { t.Hosts[2].MAC = "02:77:00:00:00:01" }, "client"},
		{"virtual and own", func(t *netnslab.Topology) { t.VIPs[0] = t.Hosts[0].Addr4() }, "client"},
		{"virtual twice", func(t *netnslab.Topology) { t.VIPs[1] = t.VIPs[0] }, "virtual"},
		{"unspecified virtual", func(t *netnslab.Topology) { t.VIPs[0] = addr("0.0.0.0") }, "virtual"},
		{"impaired stranger", func(t *netnslab.Topology) { t.Impairments = []netnslab.HostImpairment{{Host: "x"}} }, `"x"`},
		{"impaired twice", func(t *netnslab.Topology) { t.Impairments = []netnslab.HostImpairment{{Host: "a"}, {Host: "a"}} }, "once"},
		{"bad impairment", func(t *netnslab.Topology) {
			t.Impairments = []netnslab.HostImpairment{{Host: "a", Down: netnslab.Impairment{Loss: 7}}}
		}, "loss 7"},
	} {
		t.Run(test.name, func(t *testing.T) {
			topo := netnslab.Standard(2)
			test.change(&topo)
			if err := topo.Validate(); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want one with %q", err, test.want)
			}
		})
	}
}

func ExampleStandard() {
	topo := netnslab.Standard(2)
	for _, h := range topo.Hosts {
		fmt.Println(h.Name, h.Role, h.Addr4(), h.Addr6())
	}
	fmt.Println(topo.VIP4(), topo.VIP6())
	// Output:
	// client client 10.77.0.1 fd77::1
	// entry entry 10.77.0.2 fd77::2
	// a server 10.77.0.11 fd77::11
	// b server 10.77.0.12 fd77::12
	// 10.77.0.100 fd77::100
}
