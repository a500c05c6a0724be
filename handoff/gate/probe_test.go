// SPDX-License-Identifier: Apache-2.0

//go:build linux

package gate

import (
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestProbe(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	for _, f := range Probe() {
		if f.Required && !f.OK {
			t.Errorf("%s: %s, and yet the other tests pass here", f.Name, f.Detail)
		}
		if f.OK != (f.Detail == "") {
			t.Errorf("%+v: a detail says what to do, and only then", f)
		}
	}
}

func TestProbeWithoutCapabilities(t *testing.T) {
	newHost(t).do(t, func() error {
		none := make([]unix.CapUserData, 2)
		if err := unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &none[0]); err != nil {
			return err
		}
		missing := 0
		for _, f := range Probe() {
			if strings.HasPrefix(f.Name, "capability") && !f.OK && strings.Contains(f.Detail, "AmbientCapabilities") {
				missing++
			}
		}
		if missing != 3 {
			t.Errorf("%d capabilities found missing, want 3", missing)
		}
		return nil
	})
}

func TestAtLeast(t *testing.T) {
	if err := atLeast(3, 0); err != nil {
		t.Error(err)
	}
	if err := atLeast(99, 0); err == nil {
		t.Error("kernel 99 found")
	}
}
