// SPDX-License-Identifier: Apache-2.0

//go:build linux

package forward

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func TestProbe(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	for _, f := range Probe() {
		if !f.OK || f.Detail != "" {
			t.Errorf("%s: %s, and yet the other tests pass here", f.Name, f.Detail)
		}
	}
}

func TestProbeWithoutCapabilities(t *testing.T) {
	newHost(t).do(t, func() error {
		none := make([]unix.CapUserData, 2)
		if err := unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &none[0]); err != nil {
			return err
		}
		for _, f := range Probe() {
			if f.OK != (f.Detail == "") {
				t.Errorf("%+v: a detail says what to do, and only then", f)
			}
			if f.Name == "kernel has tcx" && f.OK {
				t.Error("tcx was found without the right to ask for it")
			}
		}
		return nil
	})
}
