// SPDX-License-Identifier: Apache-2.0

package admission

import "math"

// Thresholds are T1 < T2 < T3 < C of eq. 2. T2 and T3 move.
type Thresholds struct{ T1, T2, T3, C float64 }

// refuse returns the probabilities of eq. 2 (SARA 13) in the repaired reading: for new sessions 0 up to T1, then in a straight line to
// 1 at T2; for established ones the same from T3 to C.
func (t Thresholds) refuse(x float64) (newer, established float64) {
	return ratio(x-t.T1, t.T2-t.T1), ratio(x-t.T3, t.C-t.T3)
}

// move is eq. 4 (SARA 15) in the repaired reading: with the excess e_k = max(0, x - T_k), T2 falls by e2 and T3 by the share e3 of itself.
//
// The print has no bound. Here T2 stays above T1, and T3 above what the operator has set T2 to: no established session suffers at a load at which
// the operator wants only new ones to be refused. Without that bound T3 follows T2 down to T1; servers that are merely busy are above it then, and
// so their sessions' datagrams are dropped, those are sent again, and the load never comes below T1, where the thresholds would return.
func (t Thresholds) move(x, gap float64, operator Thresholds) Thresholds {
	t.T2 = max(t.T1+gap, t.T2-max(0, x-t.T2))
	t.T3 = max(operator.T2+gap, t.T3*(1-min(1, max(0, x-t.T3))))
	return t
}

// refuseLiteral is eq. 2 as it stands in print. With f = |(x-T1)/(T2-T1)| and g = |(x-T3)/(C-T3)|:
//
//	0              x ≠ T1 (which must be x <= T1)
//	1 - f          new session and T1 < x <= T2
//	1              new session and T2 < x <= T3
//	max(g, 1-g)    otherwise
//
// A new session is refused for certain just above T1 and never at T2, and the last case jumps: above T3 it is 1, then 1/2 in the
// middle, then 1 at C. (The print has p = 1 - g and p = |...| in the same line; the maximum is the same with both.)
// "Otherwise" would also hold for established sessions between T1 and T3, and drop half of their datagrams or more; the paragraph
// that follows it says that they are all admitted there, and that is what is done.
func (t Thresholds) refuseLiteral(x float64) (newer, established float64) {
	g := math.Abs((x - t.T3) / (t.C - t.T3))
	otherwise := min(1, max(g, 1-g))
	switch {
	case x <= t.T1:
		return 0, 0
	case x <= t.T2:
		return 1 - ratio(x-t.T1, t.T2-t.T1), 0
	case x <= t.T3:
		return 1, 0
	}
	return otherwise, otherwise
}

// moveLiteral is eq. 4 as it stands in print: T2 <- T2 - |T2-x| and T3 <- T3 * |T3-x|, whether x is above or below. T2 goes to x at once
// if it was above, and T3 all but vanishes. What the print leaves open is closed as in the repaired reading: the order stays.
func (t Thresholds) moveLiteral(x, gap float64) Thresholds {
	highest := t.T3
	t.T2 = max(t.T1+gap, t.T2-math.Abs(t.T2-x))
	t.T3 = min(highest, max(t.T2+gap, t.T3*math.Abs(t.T3-x)))
	return t
}

// ratio returns part/whole within [0, 1].
func ratio(part, whole float64) float64 { return min(1, max(0, part/whole)) }
