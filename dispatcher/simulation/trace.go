// SPDX-License-Identifier: Apache-2.0

package simulation

// trace keeps averages of what servers report.
type trace struct {
	every int // reports to a row; 0: nothing is kept
	n     int
	sums  []float64
	rows  [][]float64
}

func newTrace(c Config) trace {
	if c.Trace == 0 {
		return trace{}
	}
	return trace{every: max(1, int(c.Trace/c.Report)), sums: make([]float64, c.Servers)}
}

// add takes a server's load.
func (t *trace) add(server int, load float64) {
	if t.every > 0 {
		t.sums[server] += load
	}
}

// step ends a round of reports.
func (t *trace) step() {
	if t.every == 0 {
		return
	}
	if t.n++; t.n < t.every {
		return
	}
	row := make([]float64, len(t.sums))
	for i := range row {
		row[i] = t.sums[i] / float64(t.n)
		t.sums[i] = 0
	}
	t.rows = append(t.rows, row)
	t.n = 0
}
