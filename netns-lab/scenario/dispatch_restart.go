// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// RestartConfig describes a restart of a front under downloads. The zero value is the benchmark's.
type RestartConfig struct {
	// Downloads run while the front is killed; 1,000 when zero.
	Downloads int
	// Down is how long it is dead; 2 s when zero.
	Down time.Duration
}

func (c RestartConfig) withDefaults() RestartConfig {
	if c.Downloads == 0 {
		c.Downloads = 1000
	}
	if c.Down == 0 {
		c.Down = 2 * time.Second
	}
	return c
}

// RestartResult is what became of the downloads.
type RestartResult struct {
	Downloads, Failed int
	// Problems are the first failures.
	Problems []string
	// Retransmitted counts the segments that all hosts together have sent again since all downloads had begun. Some of them are tail loss probes, which
	// a busy machine causes without any loss: compare with Direct's.
	Retransmitted int
	// BackMillis is the time from the start until the front answered new connections again.
	BackMillis float64
}

const (
	// stallLimit is how long a download may stand still before it has failed.
	stallLimit = 10 * time.Second
	// maxProblems bounds what a result says.
	maxProblems = 5
)

// MeasureRestart kills a front with SIGKILL while slow downloads run, starts it again and counts those that do not end with every
// byte right. A front that is no process is left alone for as long: what is counted then is what this laboratory does by itself.
func MeasureRestart(ctx context.Context, f *Farm, front Front, cfg RestartConfig) (RestartResult, error) {
	cfg = cfg.withDefaults()
	target, err := front.Target(f, Files, false)
	if err != nil {
		return RestartResult{}, err
	}
	want := make([]byte, f.Noise.Size)
	if _, err := f.Noise.ReadAt(want, 0); err != nil && !errors.Is(err, io.EOF) {
		return RestartResult{}, err
	}
	d := &downloads{want: want, begun: make(chan struct{}, cfg.Downloads)}
	var group sync.WaitGroup
	for range cfg.Downloads {
		conn, err := f.Client().Dial(ctx, "tcp", target.String())
		if err != nil {
			d.note(err)
			d.begun <- struct{}{}
			continue
		}
		group.Go(func() { d.note(d.run(ctx, conn)) })
	}
	for range cfg.Downloads {
		select {
		case <-d.begun:
		case <-ctx.Done():
			return RestartResult{}, ctx.Err()
		}
	}
	before, err := f.retransmitted()
	if err != nil {
		return RestartResult{}, err
	}
	r := RestartResult{Downloads: cfg.Downloads}
	r.BackMillis, err = bounce(ctx, f, front, cfg)
	still := cfg.Downloads - int(d.ended.Load())
	group.Wait()
	if err != nil {
		return r, err
	}
	if still == 0 && d.failed == 0 {
		return r, errors.New("all downloads were over before the front was back: let them be longer")
	}
	after, err := f.retransmitted()
	if err != nil {
		return r, err
	}
	r.Failed, r.Problems, r.Retransmitted = d.failed, d.problems, after-before
	return r, nil
}

// bounce kills a front and starts it again. It returns how long the start took, in milliseconds.
func bounce(ctx context.Context, f *Farm, front Front, cfg RestartConfig) (float64, error) {
	daemon, ok := front.(FrontDaemon)
	if !ok {
		return 0, rest(ctx, cfg.Down)
	}
	if err := daemon.Kill(); err != nil {
		return 0, err
	}
	if err := rest(ctx, cfg.Down); err != nil {
		return 0, err
	}
	begin := time.Now()
	err := front.Start(ctx, f)
	return millis(time.Since(begin)), err
}

func rest(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// downloads are many clients that download the same.
type downloads struct {
	want  []byte
	begun chan struct{} // gets one for each download that has begun or never will
	ended atomic.Int64

	mu       sync.Mutex
	failed   int
	problems []string
}

func (d *downloads) note(err error) {
	if err == nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.failed++
	if len(d.problems) < maxProblems {
		d.problems = append(d.problems, err.Error())
	}
}

// run downloads and compares. The server keeps the pace.
func (d *downloads) run(ctx context.Context, conn net.Conn) (err error) {
	defer d.ended.Add(1)
	defer conn.Close() //nolint:errcheck // all has been read, or it has failed
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	begun := sync.OnceFunc(func() { d.begun <- struct{}{} })
	defer begun()
	deadline := func() error { return conn.SetDeadline(time.Now().Add(stallLimit)) }
	if err := deadline(); err != nil {
		return err
	}
	if _, err := io.WriteString(conn, "GET "+pacedPath+"noise HTTP/1.1\r\nHost: "+ShopName+"\r\n\r\n"); err != nil {
		return err
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, resp.Body.Close()) }()
	if resp.StatusCode != http.StatusOK || resp.ContentLength != int64(len(d.want)) {
		return fmt.Errorf("%s, %d bytes", resp.Status, resp.ContentLength)
	}
	buf := make([]byte, 16<<10)
	for at := 0; at < len(d.want); {
		if err := deadline(); err != nil {
			return err
		}
		n, err := io.ReadFull(resp.Body, buf[:min(len(buf), len(d.want)-at)])
		if err != nil {
			return fmt.Errorf("at byte %d of %d: %w", at+n, len(d.want), err)
		}
		if !bytes.Equal(buf[:n], d.want[at:at+n]) {
			return fmt.Errorf("the bytes from %d are wrong", at)
		}
		at += n
		begun()
	}
	return nil
}
