// SPDX-License-Identifier: Apache-2.0

//go:build !race

package dispatcher

// raceDetector slows everything down.
const raceDetector = false
