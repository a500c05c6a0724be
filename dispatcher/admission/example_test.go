// SPDX-License-Identifier: Apache-2.0

package admission_test

import (
	"fmt"
	"time"

	"github.com/rehome-net/rehome/dispatcher/admission"
)

func ExampleNew() {
	policy, err := admission.New(admission.Config{T1: 0.5, T2: 0.7, T3: 0.8, C: 0.9, Alpha: 1, Interval: time.Second})
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, load := range []float64{0.4, 0.6, 0.75, 0.85, 0.3} {
		d := policy.Update(admission.Loads{Head: 0.1, Nodes: []float64{load, load, load}})
		fmt.Printf("%.2f: %v, refuse %.2f of new sessions, %.2f of established ones; again in %v\n", d.Load, d.State, d.New, d.Established, d.Next)
	}
	// Output:
	// 0.40: accepting, refuse 0.00 of new sessions, 0.00 of established ones; again in 1s
	// 0.60: thinning, refuse 0.50 of new sessions, 0.00 of established ones; again in 500ms
	// 0.75: closed, refuse 1.00 of new sessions, 0.00 of established ones; again in 100ms
	// 0.85: degrading, refuse 1.00 of new sessions, 0.50 of established ones; again in 100ms
	// 0.30: accepting, refuse 0.00 of new sessions, 0.00 of established ones; again in 1s
}

// What the packet program in the kernel gets is a number of 32 bits.
func ExampleShareOf() {
	fmt.Println(admission.ShareOf(0.25), admission.ShareOf(1))
	fmt.Println(admission.ShareOf(0.25).Refuses(123), admission.ShareOf(0.25).Refuses(2_000_000_000))
	// Output:
	// 1073741824 4294967295
	// true false
}
