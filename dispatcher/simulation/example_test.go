// SPDX-License-Identifier: Apache-2.0

package simulation_test

import (
	"fmt"

	"github.com/rehome-net/rehome/dispatcher/admission"
	"github.com/rehome-net/rehome/dispatcher/simulation"
)

// At twice the load that the servers can bear, sessions get through when new ones are refused in time.
func ExampleRun() {
	for _, kind := range []admission.Kind{admission.None, admission.SA2C} {
		r, err := simulation.Run(simulation.Config{Seed: 1, Sessions: 50_000, Admission: admission.Config{Kind: kind}})
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Printf("%s: of the sessions let in, more than half were completed: %v\n", kind, r.Success() > 0.5)
	}
	// Output:
	// none: of the sessions let in, more than half were completed: false
	// sa2c: of the sessions let in, more than half were completed: true
}
