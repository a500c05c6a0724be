// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestGatewayRefuses(t *testing.T) {
	bad := filepath.Join(t.TempDir(), "gateway.yaml")
	if err := os.WriteFile(bad, []byte("host: gw\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		args []string
		code int
		want string
	}{
		{"no file", []string{"gateway", "--config", "/nonexistent"}, exitUsage, "no such file"},
		{"wrong file", []string{"gateway", "--config", bad}, exitUsage, "services"},
		{"check of no file", []string{"gateway", "check", "--config", "/nonexistent"}, exitUsage, "no such file"},
		{"check of a wrong file", []string{"gateway", "check", "--config", bad}, exitUsage, "services"},
		{"argument", []string{"gateway", "now"}, exitUsage, "now"},
		{"log level", []string{"gateway", "--config", bad, "--log-level", "loud"}, exitUsage, "--log-level"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var out, errs bytes.Buffer
			if code := run(t.Context(), tt.args, &out, &errs); code != tt.code || !strings.Contains(errs.String(), tt.want) {
				t.Errorf("exit code %d, %s", code, errs.String())
			}
		})
	}
}

func TestGatewayCheck(t *testing.T) {
	file := filepath.Join(t.TempDir(), "gateway.yaml")
	if err := os.WriteFile(file, []byte(`
host: gw
interfaces: [nowhere]
plaintext: true
dispatcher: {name: front, address: "127.0.0.1:1"}
servers: [{name: b1, address: 192.0.2.1, mac: "02:00:00:00:00:01"}]
services: [{name: video, mode: rtsp, addresses: ["192.0.2.9:554"]}]
`), 0o600); err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	code := run(t.Context(), []string{"gateway", "check", "--config", file, "--output", "json"}, &out, &errs)
	if code != exitFailed || !strings.Contains(out.String(), `"interface nowhere"`) || !strings.Contains(errs.String(), "something is missing") {
		t.Errorf("exit code %d, %s, %s", code, out.String(), errs.String())
	}
}
