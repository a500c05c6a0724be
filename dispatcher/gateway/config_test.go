// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const goodConfig = `
host: gw
interfaces: [eth0]
plaintext: true
dispatcher: {name: front, address: 10.77.0.2}
servers:
  - {name: b1, address: 10.77.0.11}
  - {name: b2, address: 10.77.0.12, mac: "02:00:5e:10:00:01"}
services:
  - {name: video, mode: rtsp, addresses: ["10.77.0.100:554", "[fd77::100]:554"]}
  - {name: voice, mode: sip, addresses: ["10.77.0.100:5060"], servers: [b2]}
`

func TestConfig(t *testing.T) {
	c, err := ReadConfig(strings.NewReader(goodConfig))
	if err != nil {
		t.Fatal(err)
	}
	if c.Hold != 50*time.Millisecond || c.Keep != 5*time.Second || c.Limits.Flows != 1<<16 || c.Dispatcher.Address != "10.77.0.2:7070" {
		t.Errorf("defaults: %+v", c)
	}
	if s := c.Services[1]; s.serves("b1") || !s.serves("b2") || !c.Services[0].serves("b1") {
		t.Error("servers of services")
	}
	if n := len(c.Services[0].protocols()) + len(c.Services[1].protocols()); n != 3 {
		t.Errorf("%d transports, want TCP of rtsp, and both of sip", n)
	}
}

func TestConfigRefuses(t *testing.T) {
	for _, tt := range []struct{ name, old, new, want string }{
		{"empty", goodConfig, "", "empty"},
		{"unknown key", "host: gw", "hots: gw", "hots"},
		{"two documents", "\nhost: gw", "\nhost: gw\n---\nhost: gw", ""},
		{"no host", "host: gw\n", "", "host: missing"},
		{"no interface", "interfaces: [eth0]", "", "interfaces: missing"},
		{"interface twice", "[eth0]", "[eth0, eth0]", "named twice"},
		{"no dispatcher", "{name: front, address: 10.77.0.2}", "{}", "dispatcher.address"},
		{"dispatcher by name", "10.77.0.2}", "front.example}", "dispatcher.address"},
		{"no tls", "plaintext: true\n", "", "tls: certificate"},
		{"tls and plaintext", "plaintext: true\n", "plaintext: true\ntls: {certificate: a}\n", "contradicts"},
		{"long hold", "host: gw", "host: gw\nhold: 2s", "hold: 2s"},
		{"negative keep", "host: gw", "host: gw\nkeep: -2s", "keep"},
		{"metrics", "host: gw", "host: gw\nmetrics: \"9\"", "metrics"},
		{"negative limit", "host: gw", "host: gw\nlimits: {flows: -1}", "limits"},
		{"server twice", "name: b2", "name: b1", "named twice"},
		{"server without address", "name: b1, address: 10.77.0.11", "name: b1", "address"},
		{"MAC", "02:00:5e:10:00:01", "02:00", "Ethernet"},
		{"mode", "mode: rtsp", "mode: http", "want rtsp, sip or ftp"},
		{"no addresses", `addresses: ["10.77.0.100:5060"]`, "addresses: []", "addresses: missing"},
		{"no port", "10.77.0.100:5060", "10.77.0.100:0", "a port"},
		{"address twice", "10.77.0.100:5060", "10.77.0.100:554", "video's"},
		{"unknown server", "servers: [b2]", "servers: [b9]", `"b9"`},
		{"service twice", "name: voice", "name: video", "named twice"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			text := strings.Replace(goodConfig, tt.old, tt.new, 1)
			if text == goodConfig {
				t.Fatal("nothing was changed")
			}
			if _, err := ReadConfig(strings.NewReader(text)); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one with %q", err, tt.want)
			}
		})
	}
}

func TestLoadConfig(t *testing.T) {
	path := filepath.Join(t.TempDir(), "gateway.yaml")
	if _, err := LoadConfig(path); err == nil {
		t.Error("loaded from nowhere")
	}
	if err := os.WriteFile(path, []byte("host: [\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadConfig(path); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("error %v does not name the file", err)
	}
}

func FuzzReadConfig(f *testing.F) {
	f.Add(goodConfig)
	f.Add("host: gw")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := ReadConfig(strings.NewReader(text))
		if err == nil && (c.Hold <= 0 || c.Host == "" || len(c.Services) == 0) {
			t.Errorf("accepted: %+v", c)
		}
	})
}
