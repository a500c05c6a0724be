// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Load is what wrk reports.
type Load struct {
	Requests  int64
	PerSecond float64
	// Median and P99 are those of the answers' times, in microseconds. With several connections on few cores that is mostly waiting.
	Median, P99 int64
	// SocketErrors are connections that failed: to connect, read, write, or in time. BadStatus are answers that are neither 2xx nor 3xx.
	SocketErrors, BadStatus int64
}

// Failed counts the requests that failed.
func (l Load) Failed() int64 { return l.SocketErrors + l.BadStatus }

// LoadConfig says how wrk loads a front. The zero value is the benchmarks'.
type LoadConfig struct {
	// Service is Files or Linked; Files when empty.
	Service Service
	// Path is what it asks for; the service's file small when empty.
	Path string
	// Connections is how many it has at a time (32), Time how long it works (5 s).
	Connections int
	Time        time.Duration
	// NewConnections makes a new connection for each request.
	NewConnections bool
	// V6 is IPv6.
	V6 bool
}

func (c LoadConfig) withDefaults() LoadConfig {
	if c.Service == "" {
		c.Service = Files
	}
	if c.Path == "" {
		c.Path = "/small"
		if c.Service == Linked {
			c.Path = LinkedPath + "small"
		}
	}
	if c.Connections == 0 {
		c.Connections = 32
	}
	if c.Time == 0 {
		c.Time = 5 * time.Second
	}
	return c
}

// MeasureLoad lets wrk load a front and returns what it reports. With NewConnections, PerSecond of a dispatcher is its handoffs per second.
func MeasureLoad(ctx context.Context, f *Farm, front Front, cfg LoadConfig) (Load, error) {
	cfg = cfg.withDefaults()
	if err := need("wrk"); err != nil {
		return Load{}, err
	}
	target, err := front.Target(f, cfg.Service, cfg.V6)
	if err != nil {
		return Load{}, err
	}
	// wrk knows no shorter time than a second.
	seconds := max(1, int(cfg.Time.Round(time.Second)/time.Second))
	args := []string{
		"--threads", "2", "--connections", strconv.Itoa(cfg.Connections), "--duration", fmt.Sprintf("%ds", seconds), "--latency",
		"--header", "Host: " + ShopName,
	}
	if cfg.NewConnections {
		args = append(args, "--header", "Connection: close")
	}
	ctx, cancel := context.WithTimeout(ctx, cfg.Time+startTimeout)
	defer cancel()
	out, err := f.Client().Command(ctx, "wrk", append(args, fmt.Sprintf("http://%v%s", target, cfg.Path))...).CombinedOutput()
	if err != nil {
		return Load{}, fmt.Errorf("wrk: %w: %s", err, out)
	}
	l, err := parseWrk(bytes.NewReader(out))
	if err != nil {
		return Load{}, fmt.Errorf("wrk: %w in:\n%s", err, out)
	}
	if l.Requests == 0 {
		return l, fmt.Errorf("wrk had no answer: %s", out)
	}
	return l, nil
}

// parseWrk reads the report of wrk 4 with --latency.
func parseWrk(r io.Reader) (Load, error) {
	var (
		l      Load
		seen   int
		err    error
		scan   = bufio.NewScanner(r)
		total  = regexp.MustCompile(`^(\d+) requests in `)
		failed = regexp.MustCompile(`^Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)$`)
	)
	for scan.Scan() && err == nil {
		line := strings.TrimSpace(scan.Text())
		fields := strings.Fields(line)
		switch {
		case len(fields) == 2 && fields[0] == "50%":
			l.Median, err = wrkTime(fields[1])
		case len(fields) == 2 && fields[0] == "99%":
			l.P99, err = wrkTime(fields[1])
		case len(fields) == 2 && fields[0] == "Requests/sec:":
			l.PerSecond, err = strconv.ParseFloat(fields[1], 64)
			seen++
		case strings.HasPrefix(line, "Non-2xx or 3xx responses: "):
			l.BadStatus, err = strconv.ParseInt(fields[len(fields)-1], 10, 64)
		default:
			if m := total.FindStringSubmatch(line); m != nil {
				l.Requests, err = strconv.ParseInt(m[1], 10, 64)
				seen++
			}
			if m := failed.FindStringSubmatch(line); m != nil {
				l.SocketErrors, err = sum(m[1:])
			}
		}
	}
	if err != nil {
		return Load{}, err
	}
	if err := scan.Err(); err != nil {
		return Load{}, err
	}
	if seen != 2 {
		return Load{}, fmt.Errorf("%d of the lines \"requests in\" and \"Requests/sec\", want both", seen)
	}
	return l, nil
}

func sum(numbers []string) (total int64, err error) {
	for _, text := range numbers {
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return 0, err
		}
		total += n
	}
	return total, nil
}

// wrkTime reads a time as wrk prints it, "1.23ms", in microseconds.
func wrkTime(text string) (int64, error) {
	d, err := time.ParseDuration(text)
	return d.Microseconds(), err
}
