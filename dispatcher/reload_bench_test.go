// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/netip"
	"testing"

	"go.yaml.in/yaml/v3"
)

// BenchmarkReload takes a configuration with 10,000 routes apart: reading the file, and compiling what it says.
func BenchmarkReload(b *testing.B) {
	cfg := Config{
		Host: "front", Interfaces: []string{"lo"}, Plaintext: true, Peers: []PeerConfig{{Name: "b1", Address: "127.0.0.1:7070"}},
		Services: []ServiceConfig{{Name: "web", Mode: ModeHTTP, Addresses: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:80")}}},
		Pools:    []PoolConfig{{Name: "files", Delivery: DeliveryLinked, Backends: []BackendConfig{{Host: "b1"}}}},
	}
	for i := range 10_000 {
		cfg.Services[0].Routes = append(cfg.Services[0].Routes, RouteConfig{Host: fmt.Sprintf("h%05d.example", i), Pool: "files"})
	}
	text, err := yaml.Marshal(cfg)
	if err != nil {
		b.Fatal(err)
	}
	read, err := ReadConfig(bytes.NewReader(text))
	if err != nil {
		b.Fatal(err)
	}
	b.Run("read", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := ReadConfig(bytes.NewReader(text)); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("compile", func(b *testing.B) {
		b.ReportAllocs()
		d := New(read, slog.New(slog.DiscardHandler))
		for b.Loop() {
			if _, err := d.compile(read, nil); err != nil {
				b.Fatal(err)
			}
		}
	})
}
