// SPDX-License-Identifier: Apache-2.0

package dispatcher

import "testing"

// TestSheddingMeasured holds that shedding goes by what is reported: while a load falls because of moves, its forecast is below what it comes to, and a server would
// stop too early.
func TestSheddingMeasured(t *testing.T) {
	d, _ := hot(t)
	report(d, "b1", 0.95, 0.9, 0.8, 0.7)
	node := d.backend("b1").node
	if forecast := d.management.of(node).load; forecast >= 0.7 {
		t.Fatalf("the forecast is %v, and nothing is tested", forecast)
	}
	servers, isHot := d.management.shedder.servers()
	for _, s := range servers {
		if s.Host == uint32(node) && s.Load != 0.7 {
			t.Errorf("load %v, want the reported 0.7", s.Load)
		}
	}
	if !isHot || len(servers) != 3 {
		t.Errorf("hot %t, %d servers", isHot, len(servers))
	}
}
