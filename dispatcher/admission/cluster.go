// SPDX-License-Identifier: Apache-2.0

package admission

import "math"

// clusterLoad is l_c of eq. 1 (SARA 12): alpha*mean(l_j) + (1-alpha)*variance(l_j), with the variance of a population (divided by N).
func clusterLoad(alpha float64, nodes []float64) float64 {
	mean, squares, n := 0.0, 0.0, 0.0
	for _, load := range nodes {
		if !isLoad(load) {
			continue
		}
		// Welford's update: the difference of two large sums would cost digits.
		n++
		difference := load - mean
		mean += difference / n
		squares += difference * (load - mean)
	}
	if n == 0 {
		return 0
	}
	return alpha*mean + (1-alpha)*squares/n
}

// decisive is x of eq. 2, max(l, l_c).
func (l Loads) decisive(alpha float64) (x, cluster float64) {
	cluster = clusterLoad(alpha, l.Nodes)
	if isLoad(l.Head) {
		return max(l.Head, cluster), cluster
	}
	return cluster, cluster
}

func isLoad(load float64) bool { return load >= 0 && !math.IsInf(load, 1) }
