// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rehome-net/rehome/dispatcher/health"
)

// checkedConfig is goodConfig with a section health for the pool files, and with checks at the end.
func checkedConfig(section, checks string) string {
	text := strings.Replace(goodConfig, "delivery: unmodified", "delivery: unmodified\n    health: "+section, 1)
	return text + "\n" + checks
}

const checksAddress = "checks: {addresses: [10.0.0.250/24]}"

func TestHealthConfig(t *testing.T) {
	for _, tt := range []struct {
		section string
		want    HealthConfig
		probe   health.ProbeConfig
	}{
		{
			"{type: tcp}",
			HealthConfig{Type: health.TCP, Through: ThroughVIP, Interval: 2 * time.Second, Timeout: time.Second, Rise: 2, Fall: 3},
			health.ProbeConfig{Kind: health.TCP, Send: []byte{}, Receive: []byte{}},
		},
		{
			"{type: http, through: address, port: 8080, interval: 500ms, rise: 1, fall: 5, host: a.example, expect: well}",
			HealthConfig{
				Type: health.HTTP, Through: ThroughAddress, Port: 8080, Interval: 500 * time.Millisecond, Timeout: 500 * time.Millisecond,
				Rise: 1, Fall: 5, Path: "/", Host: "a.example", Expect: "well",
			},
			health.ProbeConfig{Kind: health.HTTP, Path: "/", Host: "a.example", Body: "well"},
		},
		{
			"{type: tls, timeout: 3s, sni: a.example}",
			HealthConfig{
				Type: health.TLS, Through: ThroughVIP, Interval: 2 * time.Second, Timeout: 3 * time.Second, Rise: 2, Fall: 3, SNI: "a.example",
			},
			health.ProbeConfig{Kind: health.TLS, Host: "a.example"},
		},
		{
			"{type: udp, payload: ping, expect: pong}",
			HealthConfig{
				Type: health.UDP, Through: ThroughVIP, Interval: 2 * time.Second, Timeout: time.Second, Rise: 2, Fall: 3,
				Payload: "ping", Expect: "pong",
			},
			health.ProbeConfig{Kind: health.UDP, Send: []byte("ping"), Receive: []byte("pong")},
		},
		{
			"{type: script, command: [/bin/true, x]}",
			HealthConfig{
				Type: health.Script, Through: ThroughAddress, Interval: 2 * time.Second, Timeout: time.Second, Rise: 2, Fall: 3,
				Command: []string{"/bin/true", "x"},
			},
			health.ProbeConfig{Kind: health.Script, Command: []string{"/bin/true", "x"}},
		},
	} {
		c, err := ReadConfig(strings.NewReader(checkedConfig(tt.section, checksAddress)))
		if err != nil {
			t.Errorf("%s: %v", tt.section, err)
			continue
		}
		if diff := cmp.Diff(&tt.want, c.Pools[0].Health); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.section, diff)
		}
		if diff := cmp.Diff(tt.probe, c.Pools[0].Health.probe()); diff != "" {
			t.Errorf("probe of %s (-want +got):\n%s", tt.section, diff)
		}
		if c.Checks.Interface != "eth0" {
			t.Errorf("checks.interface is %q", c.Checks.Interface)
		}
	}
}

func TestHealthConfigRefuses(t *testing.T) {
	for _, tt := range []struct{ section, checks, want string }{
		{"{}", "", `pools[0] files: health: type: "": want one of [tcp http tls udp script]`},
		{"{type: icmp}", "", `health: type: "icmp"`},
		{"{type: tcp, every: 1s}", "", "field every not found"},
		{"{type: tcp, interval: 1}", "", "cannot unmarshal"},
		{"{type: tcp, interval: 1ms}", "", "health: interval: 1ms: want 10ms to 1h0m0s"},
		{"{type: tcp, interval: -1s}", "", "health: interval: -1s"},
		{"{type: tcp, interval: 2h}", "", "health: interval: 2h0m0s"},
		{"{type: tcp, timeout: -1s}", "", "health: timeout: -1s: want 1ms to"},
		{"{type: tcp, rise: -1}", "", "health: rise: -1: want 1 to 1000"},
		{"{type: tcp, fall: 2000}", "", "health: fall: 2000: want 1 to 1000"},
		{"{type: tcp, port: 70000}", "", "cannot unmarshal"},
		{"{type: tcp, through: nat}", "", `health: through: "nat": want vip or address`},
		{"{type: tcp}", "", "health: backend b1: through: vip: checks.addresses has none for 10.0.0.11"},
		{"{type: tcp}", `checks: {addresses: ["2001:db8::250/64"]}`, "checks.addresses has none for 10.0.0.11"},
		{"{type: script, command: [/bin/true], through: vip}", checksAddress, "health: through: vip: a script runs on this host"},
		{"{type: script}", "", "health: command: want the absolute path"},
		{"{type: script, command: [true]}", "", "health: command: want the absolute path"},
		{"{type: tcp, command: [/bin/true]}", "", "health: command: not with type tcp, only with [script]"},
		{"{type: udp}", "", "health: payload: missing"},
		{"{type: http, payload: x}", "", "health: payload: not with type http, only with [udp tcp]"},
		{"{type: tls, expect: x}", "", "health: expect: not with type tls"},
		{"{type: tls, host: x}", "", "health: host: not with type tls"},
		{"{type: http, sni: x}", "", "health: sni: not with type http"},
		{"{type: tcp, path: /}", "", "health: path: not with type tcp"},
		{"{type: http, path: x}", "", `health: path: "x": want one that begins with /`},
		{`{type: http, path: "/a b"}`, "", `health: path: "/a b"`},
		{"{type: tcp, through: address}", "checks: {addresses: [10.0.0.11/24]}", "checks.addresses: 10.0.0.11/24: want an address that nobody has"},
		{"{type: tcp, through: address}", "checks: {addresses: [198.51.100.1/24]}", "checks.addresses: 198.51.100.1/24: want an address that nobody has"},
		{"{type: tcp, through: address}", "checks: {addresses: [10.0.0.1/24, 10.0.0.2/24]}", "checks.addresses: 10.0.0.2/24: one for each"},
		{"{type: tcp, through: address}", "checks: {addresses: [127.0.0.1/8]}", "checks.addresses: 127.0.0.1/8: want an address of the backends'"},
		{"{type: tcp, through: address}", "checks: {addresses: [10.0.0.1]}", "10.0.0.1"},
		{"{type: tcp, through: address}", "checks: {adresses: [10.0.0.1/24]}", "field adresses not found"},
	} {
		_, err := ReadConfig(strings.NewReader(checkedConfig(tt.section, tt.checks)))
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s %s: error %v, want one with %q", tt.section, tt.checks, err, tt.want)
		}
	}
	// What depends on services, too.
	spare := "  - {name: spare, delivery: linked, health: %s, backends: [{host: b1}]}\nchecks: {addresses: [10.0.0.250/24]}\n"
	for section, want := range map[string]string{
		"{type: tcp}":                              "pools[2] spare: health: backend b1: port: missing: no service leads to the pool",
		"{type: tcp, through: address}":            "pools[2] spare: health: backend b1: port: missing",
		"{type: tcp, port: 80}":                    "through: vip: no service with an address of 10.0.0.11's IP version leads to the pool",
		"{type: tcp, port: 80, through: address}":  "",
		"{type: script, command: [/x], port: 800}": "",
	} {
		_, err := ReadConfig(strings.NewReader(goodConfig + fmt.Sprintf(spare, section)))
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: error %v, want %q", section, err, want)
		}
	}
}

// TestCheckedAt: the first service that leads to the pool decides, and the backend's IP version which of its addresses.
func TestCheckedAt(t *testing.T) {
	for _, tt := range []struct{ section, backend, want string }{
		{"{type: tcp}", "10.0.0.11", "198.51.100.1:80"},
		{"{type: tcp}", "2001:db8:7::1", "[2001:db8::1]:80"},
		{"{type: tcp, port: 81}", "10.0.0.11", "198.51.100.1:81"},
		{"{type: tcp, through: address}", "10.0.0.11", "10.0.0.11:80"},
		{"{type: tcp, through: address, port: 81}", "2001:db8:7::1", "[2001:db8:7::1]:81"},
		{"{type: script, command: [/bin/true]}", "10.0.0.12", "10.0.0.12:80"},
	} {
		c, err := ReadConfig(strings.NewReader(checkedConfig(tt.section, `checks: {addresses: [10.0.0.250/24, "2001:db8:7::250/64"]}`)))
		if err != nil {
			t.Errorf("%s: %v", tt.section, err)
			continue
		}
		got, err := c.checkedAt(&c.Pools[0], netip.MustParseAddr(tt.backend))
		if err != nil || got.String() != tt.want {
			t.Errorf("%s of %s: %v %v, want %s", tt.section, tt.backend, got, err, tt.want)
		}
	}
}
