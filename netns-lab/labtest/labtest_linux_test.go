// SPDX-License-Identifier: Apache-2.0

package labtest_test

import (
	"os"
	"strings"
	"testing"

	netnslab "github.com/rehome-net/rehome/netns-lab"
	"github.com/rehome-net/rehome/netns-lab/labtest"
	"github.com/rehome-net/rehome/netns-lab/leakcheck"
)

func TestMain(m *testing.M) {
	os.Exit(leakcheck.Main(m, leakcheck.Config{Namespaces: "rh-" + labtest.Prefix()}))
}

func TestLabsOfOneProcessDoNotCollide(t *testing.T) {
	seen := make(map[string]bool)
	for range 3 {
		name := labtest.New(t, netnslab.Standard(0)).Topology().Name
		if seen[name] || !strings.HasPrefix(name, labtest.Prefix()) {
			t.Errorf("lab %q after %v", name, seen)
		}
		seen[name] = true
	}
}

func TestLabEndsWithItsTest(t *testing.T) {
	labtest.RequireRoot(t)
	var name string
	t.Run("inner", func(t *testing.T) { name = labtest.New(t, netnslab.Standard(0)).Topology().Name })
	if _, err := netnslab.Reopen(name); err == nil {
		t.Errorf("lab %s stands after its test", name)
	}
}
