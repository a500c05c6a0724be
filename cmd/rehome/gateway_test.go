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
