// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"fmt"
	"slices"
	"strings"
)

// judge decides whether all is well: nothing failed, every kind of delivery that the front was to use was used, the front has passed nothing on
// itself, and every check could be made. What is not goes to Problems.
func (r *DispatchResult) judge(deliveries []string) {
	r.OK = r.Failed == 0
	wrong := func(format string, args ...any) {
		r.OK = false
		r.Problems = append(r.Problems, fmt.Sprintf(format, args...))
	}
	for _, d := range deliveries {
		if r.Handoffs[d] == 0 {
			wrong("no connection was handed off by delivery %s", d)
		}
	}
	if r.BytesRelayed != 0 {
		wrong("the front has passed on %d bytes itself", r.BytesRelayed)
	}
	if len(r.Missing) > 0 {
		slices.Sort(r.Missing)
		r.Missing = slices.Compact(r.Missing)
		wrong("checks could not be made: install %s", strings.Join(r.Missing, ", "))
	}
}
