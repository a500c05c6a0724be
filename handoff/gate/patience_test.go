// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"testing"
	"time"
)

// TestPatience looks once in a while for frames of which some come, or none.
func TestPatience(t *testing.T) {
	const ms = time.Millisecond
	begin := time.Unix(1000, 0)
	type look struct {
		at         time.Duration
		seen       uint64
		more, vain bool
	}
	for _, tt := range []struct {
		name  string
		limit time.Duration
		// vain is when somebody has waited in vain before; 0: nobody has.
		vain  time.Duration
		looks []look
	}{
		{"nothing comes", time.Second, 0, []look{{0, 7, true, false}, {waitTime - ms, 7, true, false}, {waitTime, 7, false, true}}},
		{"some come", time.Second, 0, []look{{0, 7, true, false}, {waitTime, 8, false, false}}},
		{"it begins with the first look", time.Second, 0, []look{{100 * ms, 7, true, false}, {waitTime, 7, true, false}, {waitTime + 100*ms, 7, false, true}}},
		{"the hold ends", 20 * ms, 0, []look{{0, 7, true, false}, {20 * ms, 7, false, false}}},
		{"there is no hold", -time.Hour, 0, []look{{0, 0, false, false}}},
		{"another has waited", time.Second, -ms, []look{{0, 7, false, false}, {waitTime, 7, false, false}}},
		{"long ago", time.Second, -vainTime, []look{{0, 7, true, false}, {waitTime, 7, false, true}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var vain time.Time
			if tt.vain != 0 {
				vain = begin.Add(tt.vain)
			}
			p := newPatience(begin, begin.Add(tt.limit), vain)
			if p.vain(begin.Add(time.Hour), 0) {
				t.Error("in vain before it has begun")
			}
			for _, l := range tt.looks {
				now := begin.Add(l.at)
				if more, vain := p.more(now, l.seen), p.vain(now, l.seen); more != l.more || vain != l.vain {
					t.Errorf("after %v with %d frames: more %v, vain %v; want %v, %v", l.at, l.seen, more, vain, l.more, l.vain)
				}
			}
		})
	}
}
