// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"bytes"
	"context"
	"fmt"
	"strconv"
	"time"
)

// DownloadTurns downloads the file /big through each of some fronts, which have been started, forth and back and all over again, and returns
// each front's rates in megabits per second, in its order: so that what else the machine does meets all alike, also what grows or fades
// evenly. A turn is one connection, on which curl asks for the file several times. Nothing else is measured meanwhile: BPF's statistics, for
// instance, cost time for each packet.
func DownloadTurns(ctx context.Context, f *Farm, fronts []Front, turns, times int) ([][]float64, error) {
	if err := need("curl"); err != nil {
		return nil, err
	}
	rates := make([][]float64, len(fronts))
	for t := range turns {
		for i := range fronts {
			if t%2 == 1 {
				i = len(fronts) - 1 - i
			}
			rate, err := downloadRate(ctx, f, fronts[i], times)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", fronts[i].Name(), err)
			}
			rates[i] = append(rates[i], rate)
		}
	}
	return rates, nil
}

// Percent compares the rates of a front with another's of the same turns: turn by turn, so that a machine that becomes slow for a while
// changes both rates of a turn, and not their ratio. The slices are of one length.
func Percent(rates, of []float64) []float64 {
	p := make([]float64, len(rates))
	for i := range rates {
		p[i] = 100 * rates[i] / of[i]
	}
	return p
}

// downloadRate is one turn.
func downloadRate(ctx context.Context, f *Farm, front Front, times int) (float64, error) {
	target, err := front.Target(f, Files, false)
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	cmd := f.Client().Command(ctx, "curl", "--silent", "--show-error", "--fail", "--output", "/dev/null",
		"--write-out", "%{size_download} %{time_total} %{num_connects}\n", fmt.Sprintf("http://%v/big?[1-%d]", target, times))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return 0, fmt.Errorf("curl: %w: %s", err, stderr.Bytes())
	}
	return parseTurn(out, f.cfg.BigSize, times)
}

// parseTurn reads what downloadRate lets curl write: for each download its bytes, its seconds, and the connections that it has opened.
func parseTurn(out []byte, size int64, times int) (float64, error) {
	lines := bytes.Split(bytes.TrimSpace(out), []byte("\n"))
	if len(lines) != times {
		return 0, fmt.Errorf("curl: %d downloads, want %d: %q", len(lines), times, out)
	}
	var seconds float64
	for i, line := range lines {
		fields := bytes.Fields(line)
		connects := "0"
		if i == 0 {
			connects = "1"
		}
		if len(fields) != 3 || string(fields[0]) != strconv.FormatInt(size, 10) || string(fields[2]) != connects {
			return 0, fmt.Errorf("curl: download %d: %q: want %d bytes and %s new connections", i, line, size, connects)
		}
		took, err := strconv.ParseFloat(string(fields[1]), 64)
		if err != nil {
			return 0, fmt.Errorf("curl: %w", err)
		}
		seconds += took
	}
	return float64(size) * float64(times) * 8 / 1e6 / seconds, nil
}
