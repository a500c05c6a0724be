// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"strings"
	"testing"
)

func TestWays(t *testing.T) {
	missing := Finding{Name: "missing", Required: true}
	optional := Finding{Name: "optional"}
	there := Finding{Name: "there", OK: true, Required: true}
	for _, c := range []struct {
		bpf  []Finding
		nft  Finding
		says string
	}{
		{[]Finding{there, optional}, there, "both"},
		{[]Finding{there, optional}, missing, "allows BPF;"},
		{[]Finding{there, missing}, there, "refuses BPF, and allows nftables"},
		{[]Finding{missing}, missing, "neither"},
	} {
		if got := Ways(c.bpf, c.nft); !strings.Contains(got, c.says) {
			t.Errorf("Ways(%v, %v) = %q, want %q in it", c.bpf, c.nft, got, c.says)
		}
	}
}
