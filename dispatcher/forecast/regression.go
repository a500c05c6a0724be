// SPDX-License-Identifier: Apache-2.0

package forecast

// weight is a_k of eq. 6 for sample k of n (k from 1, the oldest) when a least-squares line through all n is followed for ahead
// samples after the last one:
//
//	a_k = 1/n + (k - kbar)(k* - kbar) / sum (k - kbar)^2,  kbar = (n+1)/2,  k* = n + ahead
//
// The weights sum up to 1. The paper prints them as alpha_j^k and only says that phi is a simple linear regression; this closed form is
// what that is for equally distant samples. The sum of squares is n(n^2-1)/12.
func weight(k, n, ahead int) float64 {
	if n == 1 {
		return 1
	}
	size := float64(n)
	middle := (size + 1) / 2
	squares := size * (size*size - 1) / 12
	return 1/size + (float64(k)-middle)*(float64(n+ahead)-middle)/squares
}
