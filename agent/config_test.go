// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.yaml.in/yaml/v3"

	"github.com/rehome-net/rehome/handoff/gate"
)

const goodConfig = `
host: web-1
interfaces: [eth0]
plaintext: true
peers:
  - {name: entry-1, address: 10.0.0.2}
  - {name: web-2, address: "10.0.0.12:7171", id: 9}
services:
  - name: files
    addresses: ["198.51.100.1:80", "[2001:db8::1]:80"]
    entry: entry-1
    servers: [web-1, web-2]
gate:
  pin: /sys/fs/bpf/rehome
  idle_timeout: 1h
migration:
  limit: 5s
`

func TestReadConfig(t *testing.T) {
	got, err := ReadConfig(strings.NewReader(goodConfig))
	if err != nil {
		t.Fatal(err)
	}
	want := Config{
		Host: "web-1", Interfaces: []string{"eth0"}, Plaintext: true,
		Listen: ":7070", Control: DefaultControlSocket, Applications: DefaultApplicationSocket,
		Peers: []PeerConfig{
			{Name: "entry-1", Address: "10.0.0.2:7070", ID: 1},
			{Name: "web-2", Address: "10.0.0.12:7171", ID: 9},
		},
		Services: []ServiceConfig{{
			Name: "files", Entry: "entry-1", Servers: []string{"web-1", "web-2"},
			Addresses: []netip.AddrPort{netip.MustParseAddrPort("198.51.100.1:80"), netip.MustParseAddrPort("[2001:db8::1]:80")},
		}},
		Gate: GateConfig{Mode: GateAuto, Pin: "/sys/fs/bpf/rehome", IdleTimeout: time.Hour, StrayTime: 10 * time.Second, EndLinger: 65 * time.Second, HoldPackets: 32768, HoldBytes: 64 << 20, HoldTotal: 256 << 20},
		Migration: MigrationConfig{
			Limit: 5 * time.Second, Concurrency: 64, Incoming: 1024, StateBytes: 64 << 20, QueueBytes: 64 << 20, BufferBytes: 1 << 30,
		},
		Process: ProcessConfig{CRIU: os.Getenv(criuEnvironment), Limit: time.Minute, Incoming: 4},
	}
	if d := cmp.Diff(want, got, cmpopts.EquateComparable(netip.AddrPort{})); d != "" {
		t.Errorf("configuration (-want +got):\n%s", d)
	}
}

func TestReadConfigRefuses(t *testing.T) {
	for _, tt := range []struct{ name, old, new, want string }{
		{"unknown key", "plaintext: true", "plaintex: true", "line 4: field plaintex not found"},
		{"no host", "host: web-1", "", "host: missing"},
		{"no interface", "interfaces: [eth0]", "", "interfaces: missing"},
		{"peers without TLS", "plaintext: true", "", "tls: certificate, key and authority are needed"},
		{"TLS and plaintext", "plaintext: true", "plaintext: true\ntls: {key: k}", "plaintext: contradicts tls"},
		{"operators over TCP without TLS", "plaintext: true", "plaintext: true\ncontrol: 10.0.0.1:7071", "operators over TCP need tls"},
		{"peer's name twice", "name: web-2, address", "name: entry-1, address", `the name "entry-1" stands twice`},
		{"peer's id twice", "id: 9", "id: 1", "id 1 is also entry-1's"},
		{"peer without address", "address: 10.0.0.2", "address: nowhere", "want ip:port"},
		{"bad MAC", "id: 9", "mac: zz", "mac:"},
		{"no entry", "entry: entry-1", "", "entry: missing"},
		{"foreign entry", "entry: entry-1", "entry: nobody", `"nobody" is neither this host nor a peer`},
		{"foreign server", "servers: [web-1, web-2]", "servers: [web-9]", `"web-9" is neither this host nor a peer`},
		{"address without port", `"198.51.100.1:80"`, `"198.51.100.1:0"`, "a virtual address and a port are needed"},
		{"bad address", `"198.51.100.1:80"`, `"198.51.100:80"`, "198.51.100"},
		{"bad listen", "plaintext: true", "plaintext: true\nlisten: nowhere", "listen:"},
		{"less for all than for one", "gate:\n", "gate:\n  hold_bytes: 1000\n  hold_total: 999\n", "gate.hold_total: 999: gate.hold_bytes at least, which is 1000"},
		{"less for all than for one by default", "gate:\n", "gate:\n  hold_total: 1000\n", "gate.hold_total: 1000: gate.hold_bytes at least, which is 67108864"},
		{"less than nothing", "gate:\n", "gate:\n  hold_total: -1\n", "gate.hold_total: -1: gate.hold_bytes at least"},
		{"empty", goodConfig, "", "the file is empty"},
		{"two documents", goodConfig, goodConfig + "\n---\nhost: x\n", "more than one YAML document"},
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

// TestHoldBounds holds what the gate is given.
func TestHoldBounds(t *testing.T) {
	for _, tt := range []struct {
		name, keys string
		want       gate.Config
	}{
		{"by default", "", gate.Config{HoldPackets: 32 << 10, HoldBytes: 64 << 20, HoldTotal: 256 << 20}},
		{"as configured", "  hold_packets: 10\n  hold_bytes: 1000\n  hold_total: 5000\n", gate.Config{HoldPackets: 10, HoldBytes: 1000, HoldTotal: 5000}},
		{"much for one", "  hold_bytes: 1000000000\n", gate.Config{HoldPackets: 32 << 10, HoldBytes: 1_000_000_000, HoldTotal: 1_000_000_000}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, err := ReadConfig(strings.NewReader(strings.Replace(goodConfig, "gate:\n", "gate:\n"+tt.keys, 1)))
			if err != nil {
				t.Fatal(err)
			}
			got := c.gate(nil)
			got = gate.Config{HoldPackets: got.HoldPackets, HoldBytes: got.HoldBytes, HoldTotal: got.HoldTotal}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

// TestGateMode holds what a host without BPF can be.
func TestGateMode(t *testing.T) {
	for _, tt := range []struct{ name, mode, old, new, want string }{
		{"nothing said", "", "", "", ""},
		{"a server", "nft", "", "", ""},
		{"another server's process", "nft", "servers: [web-1, web-2]", "servers: [web-2]\n    process: true", ""},
		{"an entry", "nft", "entry: entry-1", "entry: web-1", "services[0] files: entry: this host cannot be one with gate.mode: nft"},
		{"a process", "nft", "entry: entry-1", "entry: entry-1\n    process: true", "services[0] files: process: a process cannot be moved with gate.mode: nft"},
		{"an entry with BPF", "bpf", "entry: entry-1", "entry: web-1", ""},
		{"an entry by default", "auto", "entry: entry-1", "entry: web-1", ""},
		{"no mode", "fast", "", "", `gate.mode: "fast": want auto, bpf or nft`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			text := strings.Replace(goodConfig, "gate:\n", "gate:\n  mode: "+tt.mode+"\n", 1)
			c, err := ReadConfig(strings.NewReader(strings.Replace(text, tt.old, tt.new, 1)))
			if tt.want != "" {
				if err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("error %v, want one with %q", err, tt.want)
				}
				return
			}
			if err != nil || c.Gate.Mode == "" || c.drops() != (tt.mode == "nft") {
				t.Errorf("mode %q, drops %v, %v", c.Gate.Mode, c.drops(), err)
			}
		})
	}
}

// TestSelfAmongPeers holds that all hosts can have one list of peers, with the same numbers.
func TestSelfAmongPeers(t *testing.T) {
	text := strings.Replace(goodConfig, "peers:\n", "peers:\n  - {name: web-1, address: 10.0.0.11}\n", 1)
	c, err := ReadConfig(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Peers) != 2 || c.Peers[0].Name != "entry-1" || c.Peers[0].ID != 2 {
		t.Errorf("peers %+v, want entry-1 with its place in the whole list, and web-2", c.Peers)
	}
}

// TestConfigRoundTrip holds that what the laboratory writes is what the agent reads.
func TestConfigRoundTrip(t *testing.T) {
	want, err := ReadConfig(strings.NewReader(goodConfig))
	if err != nil {
		t.Fatal(err)
	}
	raw, err := yaml.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := ReadConfig(strings.NewReader(string(raw)))
	if err != nil {
		t.Fatalf("%v in\n%s", err, raw)
	}
	if d := cmp.Diff(want, got, cmpopts.EquateComparable(netip.AddrPort{})); d != "" {
		t.Errorf("configuration (-want +got):\n%s", d)
	}
}

// TestOperatorsExample keeps docs/operators.md's example valid.
func TestOperatorsExample(t *testing.T) {
	text, err := os.ReadFile("../docs/operators.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(text), "```yaml\n")
	if !ok {
		t.Fatal("no YAML example")
	}
	example, _, _ := strings.Cut(rest, "```")
	if _, err := ReadConfig(strings.NewReader(example)); err != nil {
		t.Error(err)
	}
}

func FuzzReadConfig(f *testing.F) {
	f.Add(goodConfig)
	f.Add("host: a\ninterfaces: [x]\n")
	f.Add("peers: [{}, {id: 65535}]")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := ReadConfig(strings.NewReader(text))
		if err != nil {
			return
		}
		// What has been accepted is accepted again: defaults do not contradict the rules.
		if err := c.Validate(); err != nil {
			t.Errorf("accepted, then refused: %v", err)
		}
	})
}
