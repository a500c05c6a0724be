// SPDX-License-Identifier: Apache-2.0

package agent

import "testing"

// BenchmarkLook asks the kernel about a connection that it does not have: what each end costs the agent.
func BenchmarkLook(b *testing.B) {
	d, err := openDiagnosis()
	if err != nil {
		b.Skip(err)
	}
	defer d.close()
	for b.Loop() {
		if _, err := d.state(testFlow(1)); err != nil {
			b.Fatal(err)
		}
	}
}
