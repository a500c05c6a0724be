// SPDX-License-Identifier: Apache-2.0

// Package labtest gives a test a lab of its own: one call, nothing to clean up, and a skip with a reason where there are no rights.
package labtest

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"testing"

	netnslab "github.com/rehome-net/rehome/netns-lab"
)

// maxLabs bounds the labs that stand at once in one test process.
const maxLabs = 1000

// New builds a lab and takes it down when the test ends. topo's Name is replaced by Prefix and a number, so that tests and test processes that
// run at the same time do not collide. Without root the test is skipped.
func New(t testing.TB, topo netnslab.Topology) *netnslab.Lab {
	t.Helper()
	RequireRoot(t)
	for n := range maxLabs {
		topo.Name = Prefix() + strconv.Itoa(n)
		lab, err := netnslab.Build(t.Context(), topo)
		if errors.Is(err, netnslab.ErrExists) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := lab.Close(); err != nil {
				t.Error(err)
			}
		})
		return lab
	}
	t.Fatalf("%d labs of this process stand: are they closed?", maxLabs)
	return nil
}

// Prefix returns what the names of this process's labs begin with; their namespaces begin with "rh-" and then this. It ends in a hyphen, so that
// no other process's prefix begins with it.
func Prefix() string { return fmt.Sprintf("t%s-", strconv.FormatInt(int64(os.Getpid()), 36)) }

// RequireRoot skips the test unless it may build a lab.
func RequireRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: CAP_SYS_ADMIN, CAP_NET_ADMIN and CAP_NET_RAW for network namespaces")
	}
}

// Host returns the lab's host of that name, or ends the test.
func Host(t testing.TB, lab *netnslab.Lab, name string) *netnslab.Host {
	t.Helper()
	h, err := lab.Host(name)
	if err != nil {
		t.Fatal(err)
	}
	return h
}
