// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.yaml.in/yaml/v3"

	"github.com/rehome-net/rehome/dispatcher/balance"
	"github.com/rehome-net/rehome/dispatcher/route"
)

var updateConfig = flag.Bool("update-config", false, "write testdata/config.golden anew") //nolint:gochecknoglobals // a flag

const goodConfig = `
host: front
interfaces: [eth0]
plaintext: true
peers:
  - {name: b1, address: 10.0.0.11}
  - {name: b2, address: "10.0.0.12:7171", id: 9}
services:
  - name: web
    addresses: ["198.51.100.1:80", "[2001:db8::1]:80"]
    mode: http
    routes:
      - {host: shop.example, path: /static/, pool: files}
      - {cookie: {name: srv, value: b2}, pool: apps}
    default: files
  - name: secure
    addresses: ["198.51.100.1:443"]
    mode: tls
    routes:
      - {sni: "*.secure.example", alpn: h2, pool: files}
  - name: raw
    addresses: ["198.51.100.1:6379"]
    mode: tcp
    default: files
pools:
  - name: files
    delivery: unmodified
    backends: [{host: b1, weight: 0}, {host: b2}]
  - name: apps
    delivery: fd
    balance: consistent-hash
    hash: header x-user
    backends: [{host: b2, socket: /run/apps.sock}]
`

func compareConfigs() cmp.Options {
	return cmp.Options{cmpopts.EquateComparable(netip.AddrPort{}, netip.Prefix{}), cmpopts.IgnoreFields(PeerConfig{}, "Place")}
}

func TestReadConfig(t *testing.T) {
	got, err := ReadConfig(strings.NewReader(goodConfig))
	if err != nil {
		t.Fatal(err)
	}
	limits := LimitsConfig{PeekBytes: 16384, PeekTime: 5 * time.Second, Peeking: 16384}
	address := netip.MustParseAddrPort
	want := Config{
		Host: "front", Interfaces: []string{"eth0"}, Plaintext: true,
		Listen: ":7070", Control: DefaultControlSocket, Pin: DefaultPin,
		Forward: ForwardConfig{Mode: ForwardTCX, MaxFlows: 1 << 20, IdleTimeout: 4 * time.Hour, HoldTotal: 256 << 20, Shortcut: ShortcutAuto},
		Peers: []PeerConfig{
			{Name: "b1", Address: "10.0.0.11:7070", ID: 1},
			{Name: "b2", Address: "10.0.0.12:7171", ID: 9},
		},
		Services: []ServiceConfig{{
			Name: "web", Mode: ModeHTTP, Default: "files", Limits: limits,
			Addresses: []netip.AddrPort{address("198.51.100.1:80"), address("[2001:db8::1]:80")},
			Routes: []RouteConfig{
				{Host: "shop.example", Path: "/static/", Pool: "files"},
				{Cookie: MatchConfig{"srv", "b2"}, Pool: "apps"},
			},
		}, {
			Name: "secure", Mode: ModeTLS, Limits: limits, Addresses: []netip.AddrPort{address("198.51.100.1:443")},
			Routes: []RouteConfig{{SNI: "*.secure.example", ALPN: "h2", Pool: "files"}},
		}, {
			Name: "raw", Mode: ModeTCP, Default: "files", Limits: limits, Addresses: []netip.AddrPort{address("198.51.100.1:6379")},
		}},
		Pools: []PoolConfig{{
			Name: "files", Delivery: DeliveryUnmodified, Service: "files", Balance: balance.RoundRobin, HandoffTime: time.Second,
			Backends: []BackendConfig{{Host: "b1", Weight: new(0)}, {Host: "b2", Weight: new(1)}},
		}, {
			Name: "apps", Delivery: DeliveryFD, Service: "apps", Balance: balance.ConsistentHash, Hash: "header x-user", HandoffTime: time.Second,
			Backends: []BackendConfig{{Host: "b2", Weight: new(1), Socket: "/run/apps.sock"}},
		}},
	}
	if d := cmp.Diff(want, got, compareConfigs()); d != "" {
		t.Errorf("configuration (-want +got):\n%s", d)
	}
	if source, name := got.Pools[1].HashBy(); source != HashHeader || name != "x-user" {
		t.Errorf("hash by %q %q, want header x-user", source, name)
	}
	if name := got.Pools[1].Backends[0].Name(); name != "b2:/run/apps.sock" {
		t.Errorf("backend's name %q", name)
	}
	wantRules := []route.Rule{
		{Host: "shop.example", Path: "/static/", Pool: "files"},
		{Cookie: route.Match{Name: "srv", Value: "b2"}, Pool: "apps"},
	}
	if d := cmp.Diff(wantRules, got.Services[0].Rules()); d != "" {
		t.Errorf("rules (-want +got):\n%s", d)
	}
}

func TestReadConfigRefuses(t *testing.T) {
	for _, tt := range []struct{ name, old, new, want string }{
		{"unknown key", "plaintext: true", "plaintex: true", "line 4: field plaintex not found"},
		{"unknown key of a service", "default: files", "fallback: files", "field fallback not found"},
		{"key twice", "plaintext: true", "plaintext: true\nplaintext: true", "line 5: mapping key \"plaintext\" already defined at line 4"},
		{"wrong type", "weight: 0", "weight: much", "cannot unmarshal"},
		{"empty", goodConfig, "", "the file is empty"},
		{"two documents", goodConfig, goodConfig + "\n---\nhost: x\n", "more than one YAML document"},
		{"no host", "host: front", "", "host: missing"},
		{"no interface", "interfaces: [eth0]", "", "interfaces: missing"},
		{"interface twice", "[eth0]", "[eth0, eth0]", `interfaces: "eth0": empty or named twice`},
		{"bad listen", "plaintext: true", "plaintext: true\nlisten: nowhere", "listen:"},
		{"bad port", "plaintext: true", "plaintext: true\nlisten: ':seventy'", `"seventy" is no port`},
		{"bad metrics", "plaintext: true", "plaintext: true\nmetrics: '9101'", "metrics:"},
		{"bad pin", "plaintext: true", "plaintext: true\npin: none", "pin: \"none\": want a directory"},
		{"bad control", "plaintext: true", "plaintext: true\ncontrol: dispatcher.sock", "or a path that begins with /"},
		{"operators over TCP without TLS", "plaintext: true", "plaintext: true\ncontrol: 10.0.0.1:7071", "operators over TCP need tls"},
		{"too many workers", "plaintext: true", "plaintext: true\nworkers: 5000", "workers: 5000"},
		{"negative workers", "plaintext: true", "plaintext: true\nworkers: -1", "workers: -1"},
		{"peers without TLS", "plaintext: true", "", "tls: certificate, key and authority are needed"},
		{"half of TLS", "plaintext: true", "tls: {certificate: c, key: k}", "tls: certificate, key and authority are needed"},
		{"TLS and plaintext", "plaintext: true", "plaintext: true\ntls: {key: k}", "plaintext: contradicts tls"},
		{"forward mode", "plaintext: true", "plaintext: true\nforward: {mode: fast}", `forward.mode: "fast": want tcx, xdp or nft`},
		{"shortcut", "plaintext: true", "plaintext: true\nforward: {shortcut: long}", `forward.shortcut: "long": want auto or off`},
		{"too many flows", "plaintext: true", "plaintext: true\nforward: {max_flows: 100000000}", "forward.max_flows: 100000000: at most"},
		{"too little to hold", "plaintext: true", "plaintext: true\nforward: {hold_total: 1000}", "forward.hold_total: 1000: at least 8388608"},
		{"less than nothing to hold", "plaintext: true", "plaintext: true\nforward: {hold_total: -1}", "forward.hold_total: -1: at least"},
		{"negative timeout", "plaintext: true", "plaintext: true\nforward: {idle_timeout: -1s}", "forward.idle_timeout: -1s: at least"},

		{"peer's name twice", "name: b2, address", "name: b1, address", `the name "b1" stands twice`},
		{"peer's id twice", "id: 9", "id: 1", "id 1 is also b1's"},
		{"id too large", "id: 9", "id: 4096", "id: 4096: want 1 to 4095"},
		{"peer without address", "address: 10.0.0.11", "address: nowhere", "want ip:port"},
		{"peer at port 0", "10.0.0.12:7171", "10.0.0.12:0", "is not a host's address"},
		{"bad MAC", "id: 9", "mac: zz", `mac: "zz": want an Ethernet address`},
		{"long MAC", "id: 9", `mac: "02:00:5e:10:00:00:00:01"`, "want an Ethernet address"},

		{"no mode", "mode: tls", "", "services[1] secure: mode: missing: want one of [http tls h2 tcp udp rtsp sip ftp]"},
		{"unknown mode", "mode: tls", "mode: https", `services[1] secure: mode: "https": want one of [http`},
		{"service's name twice", "name: secure", "name: web", `services[1] web: name: "web" stands twice`},
		{"service without name", "name: secure", "name: ''", "services[1] : name: missing"},
		{"no address", `addresses: ["198.51.100.1:443"]`, "", "services[1] secure: addresses: missing"},
		{"address without port", "198.51.100.1:443", "198.51.100.1:0", "a virtual address and a port are needed"},
		{"any address", "198.51.100.1:443", "0.0.0.0:443", "a virtual address and a port are needed"},
		{"bad address", `"198.51.100.1:443"`, `"198.51.100:443"`, "198.51.100"},
		{"mapped address", "198.51.100.1:443", "[::ffff:198.51.100.1]:443", "write it as IPv4: 198.51.100.1:443"},
		{"link-local address", "198.51.100.1:443", "[fe80::1]:443", "want an address that routers forward"},
		{"multicast address", "198.51.100.1:443", "224.0.0.5:443", "want an address that routers forward"},
		{"address of two services", "198.51.100.1:443", "198.51.100.1:80", "services[1] secure: addresses: 198.51.100.1:80 is also web's"},
		{"address twice", "[2001:db8::1]:80", "198.51.100.1:80", "is also web's"},
		{"nowhere to go", "mode: tcp\n    default: files", "mode: tcp", "services[2] raw: default: missing"},
		{"unknown default", "mode: tcp\n    default: files", "mode: tcp\n    default: nobody", `services[2] raw: default: "nobody" is not among the pools`},
		{"unknown pool", "alpn: h2, pool: files", "alpn: h2, pool: fils", `services[1] secure: routes[0]: pool: "fils" is not among the pools`},
		{"route without pool", "alpn: h2, pool: files", "alpn: h2", "services[1] secure: routes[0]: pool: missing"},
		{"SNI in HTTP", "host: shop.example", "sni: shop.example", "services[0] web: routes[0]: sni: not seen in mode http: use host"},
		{"host in TLS", `sni: "*.secure.example"`, `host: "*.secure.example"`, "services[1] secure: routes[0]: host: not seen in mode tls: it is encrypted"},
		{"routes in TCP", "mode: tcp", "mode: tcp\n    routes: [{path: /, pool: files}]", "services[2] raw: routes: mode tcp shows nothing"},
		{"route of everything", "{host: shop.example, path: /static/, pool: files}", "{pool: files}", "services[0] web: routes[0]: no condition"},
		{"empty cookie", "cookie: {name: srv, value: b2}", "cookie: {}", "services[0] web: routes[1]: no condition"},
		{"cookie without name", "name: srv, value: b2", "value: b2", "services[0] web: routes[1]: cookie: name: missing"},
		{"host with port", "host: shop.example", `host: "shop.example:80"`, "services[0] web: routes[0]: host: \"shop.example:80\": leave the port out"},
		{"route never chosen", "{cookie: {name: srv, value: b2}, pool: apps}", "{host: Shop.Example, path: /static/, pool: apps}", "services[0] web: routes[1]: never chosen: routes[0]"},
		{"PROXY protocol over UDP", "mode: tcp", "mode: udp\n    proxy_protocol: true", "services[2] raw: proxy_protocol: not with mode udp"},
		{"handoff of UDP", "mode: tcp\n    default: files", "mode: udp\n    default: apps", "apps is delivered fd: mode udp hands nothing off"},
		{"hash by a header in TCP", "mode: tcp\n    default: files", "mode: tcp\n    default: apps", "apps hashes by header, which is not seen in mode tcp"},
		{"hash by a header in TLS", "alpn: h2, pool: files", "alpn: h2, pool: apps", "apps hashes by header, which is not seen in mode tls"},
		{"few bytes", "default: files", "default: files\n    limits: {peek_bytes: 10}", "services[0] web: limits.peek_bytes: 10: want 256 to"},
		{"negative bytes", "default: files", "default: files\n    limits: {peek_bytes: -1}", "limits.peek_bytes: -1"},
		{"long time", "default: files", "default: files\n    limits: {peek_time: 1h}", "limits.peek_time: 1h0m0s"},
		{"time without unit", "default: files", "default: files\n    limits: {peek_time: 5}", "line 16: cannot unmarshal !!int `5` into time.Duration"},
		{"negative peeking", "default: files", "default: files\n    limits: {peeking: -1}", "limits.peeking: -1"},
		{"negative connections", "default: files", "default: files\n    limits: {connections: -1}", "limits.connections: -1"},

		{"pool's name twice", "name: apps", "name: files", `pools[1] files: name: "files" stands twice`},
		{"pool without name", "name: apps", "name: ", "pools[1] : name: missing"},
		{"no delivery", "delivery: unmodified", "", "pools[0] files: delivery: missing: want linked, fd or unmodified"},
		{"unknown delivery", "delivery: unmodified", "delivery: nat", `pools[0] files: delivery: "nat": want linked`},
		{"unknown balance", "balance: consistent-hash", "balance: random", "pools[1] apps: balance: policy \"random\": want round-robin"},
		{"hash without hashing", "balance: consistent-hash", "balance: round-robin", "pools[1] apps: hash: only with balance: consistent-hash"},
		{"unknown hash", "hash: header x-user", "hash: user", `pools[1] apps: hash: "user": want client`},
		{"hash by no header", "hash: header x-user", "hash: header", "want one name after header"},
		{"hash by two headers", "hash: header x-user", "hash: header x y", "want one name after header"},
		{"hash by too much", "hash: header x-user", "hash: client x", "nothing follows client"},
		{"negative slow start", "delivery: unmodified", "delivery: unmodified\n    slow_start: -1s", "slow_start: -1s"},
		{"long handoff", "delivery: unmodified", "delivery: unmodified\n    handoff_time: 1h", "handoff_time: 1h0m0s"},
		{"no backend", "backends: [{host: b1, weight: 0}, {host: b2}]", "", "pools[0] files: backends: missing"},
		{"backend without host", "{host: b1, weight: 0}", "{weight: 0}", "pools[0] files: backends[0]: host: missing"},
		{"backend that is no peer", "{host: b1, weight: 0}", "{host: b7}", `pools[0] files: backends[0]: host: "b7" is not among the peers`},
		{"backend that is this host", "{host: b1, weight: 0}", "{host: front}", `backends[0]: host: "front" is this host`},
		{"backend twice", "{host: b1, weight: 0}", "{host: b2}", "backends[1]: b2 stands twice"},
		{"too much weight", "weight: 0", "weight: 1001", "backends[0]: weight: 1001: want 0 to 1000"},
		{"negative weight", "weight: 0", "weight: -1", "backends[0]: weight: -1"},
		{"socket without fd", "weight: 0", "socket: /run/x.sock", "backends[0]: socket: only with delivery fd"},
		{"fd without socket", ", socket: /run/apps.sock", "", "pools[1] apps: backends[0]: socket: missing"},
		{"relative socket", "/run/apps.sock", "apps.sock", "socket: \"apps.sock\": want a path from the root"},
		{"long socket", "/run/apps.sock", "/" + strings.Repeat("a", 107), "of at most 107 bytes"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			text := strings.Replace(goodConfig, tt.old, tt.new, 1)
			if text == goodConfig {
				t.Fatalf("%q does not stand in the configuration", tt.old)
			}
			_, err := ReadConfig(strings.NewReader(text))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one with %q", err, tt.want)
			}
		})
	}
}

// TestReadConfigAccepts holds what looks like a mistake and is none.
func TestReadConfigAccepts(t *testing.T) {
	for _, tt := range []struct{ name, old, new string }{
		{"TCP and UDP at one address", "\npools:", "\n  - {name: quic, addresses: [\"198.51.100.1:443\"], mode: udp, default: files}\npools:"},
		{"this host among the peers", "peers:", "peers:\n  - {name: front, address: 10.0.0.1}"},
		{"one host with two sockets", "/run/apps.sock}", "/run/apps.sock}, {host: b2, socket: /run/more.sock}"},
		{"hash by server name", "alpn: h2, pool: files", "alpn: h2, pool: apps}\n      - {sni: b.example, pool: apps"},
		{"pool that nobody uses", "\npools:", "\npools:\n  - {name: spare, delivery: linked, backends: [{host: b1}]}"},
		{"nothing pinned", "plaintext: true", "plaintext: true\npin: off"},
		{"operators over TLS", "plaintext: true", "tls: {certificate: c, key: k, authority: a}\ncontrol: ':7071'"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			text := strings.Replace(goodConfig, tt.old, tt.new, 1)
			if tt.name == "hash by server name" {
				text = strings.Replace(strings.Replace(text, "header x-user", "host", 1), "{cookie: {name: srv, value: b2}, pool: apps}", "{host: x, pool: files}", 1)
			}
			if text == goodConfig {
				t.Fatalf("%q does not stand in the configuration", tt.old)
			}
			c, err := ReadConfig(strings.NewReader(text))
			if err != nil {
				t.Fatal(err)
			}
			if tt.name == "nothing pinned" && c.PinPath() != "" {
				t.Errorf("pinned at %q", c.PinPath())
			}
			if tt.name == "this host among the peers" && (len(c.Peers) != 2 || c.Peers[0].ID != 2) {
				t.Errorf("peers %+v, want b1 with its place in the whole list, and b2", c.Peers)
			}
		})
	}
}

// TestConfigExample holds that the annotated example is valid and means what its golden file says, and that what is written
// is what is read.
func TestConfigExample(t *testing.T) {
	c, err := LoadConfig("testdata/config.yaml")
	if err != nil {
		t.Fatal(err)
	}
	got, err := yaml.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	if *updateConfig {
		if err := os.WriteFile("testdata/config.golden", got, 0o644); err != nil { //nolint:gosec // a source file
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile("testdata/config.golden")
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), string(got)); d != "" {
		t.Errorf("testdata/config.golden (-want +got):\n%s", d)
	}
	again, err := ReadConfig(strings.NewReader(string(got)))
	if err != nil {
		t.Fatalf("%v in\n%s", err, got)
	}
	if d := cmp.Diff(c, again, compareConfigs()); d != "" {
		t.Errorf("after writing and reading (-want +got):\n%s", d)
	}
}

// TestConfigSize holds that a file without end is not read to its end.
func TestConfigSize(t *testing.T) {
	endless := &comment{}
	_, err := ReadConfig(endless)
	if err == nil || !strings.Contains(err.Error(), "larger than 16 MiB") {
		t.Errorf("error %v, want one about the size", err)
	}
	if endless.read > maxConfig+1<<20 {
		t.Errorf("%d bytes were read", endless.read)
	}
}

// comment is a YAML comment that never ends.
type comment struct{ read int }

func (c *comment) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = '#'
	}
	c.read += len(b)
	return len(b), nil
}

// manyRoutes is a configuration of n routes.
func manyRoutes(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "      - {host: h%d.example, path: /p%d/, header: {name: x-version, value: %q}, pool: files}\n", i/2, i, fmt.Sprint(i))
	}
	return strings.Replace(goodConfig, "      - {host: shop.example, path: /static/, pool: files}\n", b.String(), 1)
}

func BenchmarkReadConfig(b *testing.B) {
	text := manyRoutes(10_000)
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		if _, err := ReadConfig(strings.NewReader(text)); err != nil {
			b.Fatal(err)
		}
	}
}

// TestManyRoutes holds that 10,000 routes are read and all found.
func TestManyRoutes(t *testing.T) {
	begin := time.Now()
	c, err := ReadConfig(strings.NewReader(manyRoutes(10_000)))
	if err != nil {
		t.Fatal(err)
	}
	if got := len(c.Services[0].Routes); got != 10_001 {
		t.Errorf("%d routes, want 10,001", got)
	}
	// The issue asks for a reload within 1 s; a race detector and a busy machine get more.
	if d := time.Since(begin); d > 10*time.Second {
		t.Errorf("read in %v", d)
	}
}

func FuzzReadConfig(f *testing.F) {
	f.Add(goodConfig)
	f.Add("host: a\ninterfaces: [x]\n")
	f.Add("peers: [{}, {id: 65535}]")
	f.Add("pools: [{backends: [{}, null]}, ~]\nservices: [{routes: [~]}]")
	if example, err := os.ReadFile("testdata/config.yaml"); err == nil {
		f.Add(string(example))
	}
	f.Fuzz(func(t *testing.T, text string) {
		c, err := ReadConfig(strings.NewReader(text))
		if err != nil {
			return
		}
		// What has been accepted is accepted again: defaults do not contradict the rules.
		if err := c.Validate(); err != nil {
			t.Errorf("accepted, then refused: %v", err)
		}
		for _, s := range c.Services {
			if _, err := route.Compile(s.Rules()); err != nil {
				t.Errorf("accepted, and does not compile: %v", err)
			}
		}
		for _, p := range c.Pools {
			if _, err := balance.New(balance.Config{Kind: p.Balance, SlowStart: p.SlowStart}); err != nil {
				t.Errorf("accepted, and there is no policy: %v", err)
			}
		}
	})
}
