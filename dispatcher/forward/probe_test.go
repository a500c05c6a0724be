// SPDX-License-Identifier: Apache-2.0

//go:build linux

package forward

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestProbe(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	h := newNamespace(t)
	if err := h.nl.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "eth1"}); err != nil {
		t.Fatal(err)
	}
	missing := false
	for _, f := range Probe() {
		if f.OK != (f.Detail == "") {
			t.Errorf("%+v: a detail says what to do, and only then", f)
		}
		missing = missing || !f.OK
	}
	// Open succeeds where Probe misses nothing, and says what is needed where it does.
	var f *Forwarder
	err := h.try(func() (err error) {
		f, err = Open(Config{Interfaces: []string{"eth0"}})
		return err
	})
	switch {
	case err == nil:
		if missing {
			t.Error("something is missing, and yet a forwarder opens")
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	case !missing || !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), "6.6"):
		t.Errorf("Open: %v; something is missing: %v", err, missing)
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
