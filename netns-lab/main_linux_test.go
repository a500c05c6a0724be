// SPDX-License-Identifier: Apache-2.0

package netnslab_test

import (
	"os"
	"testing"

	"github.com/rehome-net/rehome/netns-lab/labtest"
	"github.com/rehome-net/rehome/netns-lab/leakcheck"
)

func TestMain(m *testing.M) {
	os.Exit(leakcheck.Main(m, leakcheck.Config{
		Namespaces: "rh-" + labtest.Prefix(),
		Files:      []string{"/run/rehome-lab/" + labtest.Prefix() + "*"},
	}))
}
