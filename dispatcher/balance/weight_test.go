// SPDX-License-Identifier: Apache-2.0

package balance

import (
	"testing"
	"time"
)

// TestRampOwn: a slow start of a backend's own comes before the policy's.
func TestRampOwn(t *testing.T) {
	now := time.Unix(1000, 0)
	for _, tt := range []struct {
		name      string
		length    time.Duration
		slowStart time.Duration
		age       time.Duration // 0: it has been there for long
		want      int64
	}{
		{"neither", 0, 0, time.Second, 4 * weightUnit},
		{"the policy's", 4 * time.Second, 0, time.Second, weightUnit},
		{"its own alone", 0, 4 * time.Second, time.Second, weightUnit},
		{"its own is longer", 2 * time.Second, 8 * time.Second, 2 * time.Second, weightUnit},
		{"its own is shorter", 8 * time.Second, 2 * time.Second, 2 * time.Second, 4 * weightUnit},
		{"over", 4 * time.Second, 4 * time.Second, 0, 4 * weightUnit},
	} {
		b := Backend{Weight: 4, SlowStart: tt.slowStart}
		if tt.age > 0 {
			b.Since = now.Add(-tt.age)
		}
		if got := (ramp{tt.length}).weight(now, &b); got != tt.want {
			t.Errorf("%s: %d, want %d", tt.name, got, tt.want)
		}
	}
}
