// SPDX-License-Identifier: Apache-2.0

// Package forecast says where a load is going, so that admission and balancing act on what will be and not on what was
// (SARA 16, 18-21).
//
// A Series belongs to one node, the dispatcher's own host included. It is told the load at equal intervals, and answers with an
// Estimate:
//
//	series, err := forecast.New(forecast.Config{Window: 8})
//	estimate, err := series.Observe(0.42) // each interval
//	estimate.Value                        // what the engines go by
//
// The paper starts a new window after every T samples and forecasts the next window (eq. 5: I_{i+1} = I_i + T). Here the window
// slides: each sample drops the oldest one, and the forecast is of the next sample. So the answer is never older than one
// interval, and eq. 7 has a new error for each sample.
//
// Weights of a least-squares line depend on equal distances between samples. When a report is lost, observe the last load again;
// when a node has been silent for so long that it counts as failed, Reset its series.
//
// The package has no clock, and starts no goroutine. A Series is for one goroutine at a time.
package forecast
