// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strconv"
	"sync/atomic"
	"time"

	netnslab "github.com/rehome-net/rehome/netns-lab"
)

// counterCLI is redis-cli, which increments a key again and again over one connection and prints each answer.
type counterCLI struct {
	cmd    *netnslab.Cmd
	out    *os.File
	stderr bytes.Buffer
	count  atomic.Int64
	ending atomic.Bool
	done   chan error
}

// cliInterval is the time between two commands, in seconds as redis-cli wants it.
const cliInterval = "0.002"

// startCLI starts redis-cli in a host.
func startCLI(ctx context.Context, h *netnslab.Host, server netip.AddrPort) (*counterCLI, error) {
	c := &counterCLI{done: make(chan error, 1)}
	c.cmd = h.Command(ctx, "redis-cli", "-h", server.Addr().String(), "-p", strconv.Itoa(int(server.Port())),
		"-r", "-1", "-i", cliInterval, "INCR", "cli")
	out, in, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	c.cmd.Stdout, c.cmd.Stderr, c.out = in, &c.stderr, out
	if err := c.cmd.Start(); err != nil {
		_, _ = in.Close(), out.Close()
		return nil, err
	}
	_ = in.Close()
	go func() { c.done <- c.check(out) }()
	return c, nil
}

// check reads the answers: each is one more than the one before.
func (c *counterCLI) check(r io.Reader) error {
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		n, err := strconv.ParseInt(lines.Text(), 10, 64)
		if want := c.count.Load() + 1; err != nil || n != want {
			return fmt.Errorf("redis-cli: %q instead of %d", lines.Text(), want)
		}
		c.count.Store(n)
	}
	if !c.ending.Load() {
		return fmt.Errorf("redis-cli has ended after %d commands: %w", c.count.Load(), io.ErrUnexpectedEOF)
	}
	return lines.Err()
}

// await waits until redis-cli has had an answer.
func (c *counterCLI) await(ctx context.Context) error {
	for c.count.Load() == 0 {
		select {
		case err := <-c.done:
			c.done <- err
			return fmt.Errorf("%w: %s", err, c.stderr.Bytes())
		case <-ctx.Done():
			return fmt.Errorf("redis-cli gets no answer: %w", ctx.Err())
		case <-time.After(time.Millisecond):
		}
	}
	return nil
}

// stop ends redis-cli and returns what was wrong, and how many commands it has sent.
func (c *counterCLI) stop() (int64, error) {
	c.ending.Store(true)
	_ = c.cmd.Process.Kill()
	_ = c.cmd.Wait() // it was killed
	err := <-c.done
	_ = c.out.Close()
	if text := bytes.TrimSpace(c.stderr.Bytes()); err == nil && len(text) > 0 {
		err = fmt.Errorf("redis-cli says %q", text)
	}
	return c.count.Load(), err
}
