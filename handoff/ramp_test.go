// SPDX-License-Identifier: Apache-2.0

package handoff

import (
	"fmt"
	"io"
)

// rampPeriod is prime, so that no lost, doubled or shifted block of a power of two looks right.
const rampPeriod = 251

// ramp returns n bytes of the endless test pattern from offset on.
func ramp(offset uint64, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte((offset + uint64(i)) % rampPeriod)
	}
	return b
}

// checkRamp reads n bytes of the pattern from offset on.
func checkRamp(r io.Reader, offset uint64, n int) error {
	buf := make([]byte, 64<<10)
	for done := 0; done < n; {
		k, err := r.Read(buf[:min(len(buf), n-done)])
		for i, v := range buf[:k] {
			if want := byte((offset + uint64(done+i)) % rampPeriod); v != want {
				return fmt.Errorf("byte %d is %d, want %d", offset+uint64(done+i), v, want)
			}
		}
		if done += k; err != nil && done < n {
			return fmt.Errorf("after %d of %d bytes: %w", done, n, err)
		}
	}
	return nil
}
