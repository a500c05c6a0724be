// SPDX-License-Identifier: Apache-2.0

package criu

import (
	"testing"

	"github.com/google/nftables"

	netnslab "github.com/rehome-net/rehome/netns-lab"
	"github.com/rehome-net/rehome/netns-lab/labtest"
)

func TestRemoveLocks(t *testing.T) {
	lab := labtest.New(t, netnslab.Standard(1))
	if err := labtest.Host(t, lab, "a").Do(func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		for _, name := range []string{"CRIU-b00a7fd2-9c97-49bf-bc", "CRIU-2", "mine"} {
			c.AddTable(&nftables.Table{Name: name, Family: nftables.TableFamilyINet})
		}
		if err := c.Flush(); err != nil {
			t.Logf("no nftables here: %v", err)
			return nil
		}
		for _, want := range []int{2, 0} {
			if n, err := RemoveLocks(); n != want || err != nil {
				t.Errorf("%d were removed, want %d: %v", n, want, err)
			}
		}
		left, err := c.ListTables()
		if err == nil && (len(left) != 1 || left[0].Name != "mine") {
			t.Errorf("left: %v", left)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
}
