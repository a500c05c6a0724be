// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// PeekedMemory is what connections cost a front whose request has not come whole.
type PeekedMemory struct {
	Connections int
	// BytesEach is the growth of what the front's processes have allocated, divided by the connections. What the kernel keeps for the sockets is not in it.
	BytesEach float64
}

// MeasurePeekedMemory opens n connections, each of which sends half a request, and looks at the front's memory. At the end all requests
// are completed and must be answered, which proves that the front had them all.
func MeasurePeekedMemory(ctx context.Context, f *Farm, front FrontDaemon, n int) (PeekedMemory, error) {
	target, err := front.Target(f, Files, false)
	if err != nil {
		return PeekedMemory{}, err
	}
	// The first requests make the front allocate what it keeps.
	if err := f.Ask(ctx, front, Files); err != nil {
		return PeekedMemory{}, err
	}
	open, err := settledSockets(ctx, front)
	if err != nil {
		return PeekedMemory{}, err
	}
	pids, err := front.Processes()
	if err != nil {
		return PeekedMemory{}, err
	}
	before, err := memory(pids)
	if err != nil {
		return PeekedMemory{}, err
	}
	half := len(shortRequest) / 2
	conns := make([]net.Conn, 0, n)
	defer func() {
		for _, c := range conns {
			_ = c.Close()
		}
	}()
	for range n {
		c, err := f.Client().Dial(ctx, "tcp", target.String())
		if err != nil {
			return PeekedMemory{}, err
		}
		conns = append(conns, c)
		if _, err := io.WriteString(c, shortRequest[:half]); err != nil {
			return PeekedMemory{}, err
		}
	}
	if err := awaitSockets(ctx, front, open+n); err != nil {
		return PeekedMemory{}, err
	}
	if pids, err = front.Processes(); err != nil {
		return PeekedMemory{}, err
	}
	after, err := memory(pids)
	if err != nil {
		return PeekedMemory{}, err
	}
	m := PeekedMemory{Connections: n, BytesEach: float64(after-before) / float64(n)}
	for i, c := range conns {
		if err := complete(c, shortRequest[half:]); err != nil {
			return m, fmt.Errorf("connection %d: %w", i, err)
		}
	}
	return m, nil
}

// restTime is for how long a front at rest has the same number of sockets.
const restTime = 300 * time.Millisecond

// settledSockets waits until a front's sockets of earlier connections are closed, and returns how many it has at rest.
func settledSockets(ctx context.Context, front FrontDaemon) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	last, since := -1, time.Now()
	for {
		pids, err := front.Processes()
		if err != nil {
			return 0, err
		}
		n, err := sockets(pids)
		switch {
		case err != nil:
			return 0, err
		case n != last:
			last, since = n, time.Now()
		case time.Since(since) >= restTime:
			return n, nil
		}
		select {
		case <-ctx.Done():
			return 0, fmt.Errorf("%s goes on opening and closing sockets", front.Name())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// awaitSockets waits until a front has so many sockets.
func awaitSockets(ctx context.Context, front FrontDaemon, want int) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	for {
		pids, err := front.Processes()
		if err != nil {
			return err
		}
		have, err := sockets(pids)
		if err != nil {
			return err
		}
		if have >= want {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s has %d sockets, want %d: it has not accepted all connections", front.Name(), have, want)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// complete sends the rest of a request and reads the answer.
func complete(c net.Conn, rest string) (err error) {
	if err := c.SetDeadline(time.Now().Add(askTimeout)); err != nil {
		return err
	}
	if _, err := io.WriteString(c, rest); err != nil {
		return err
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, resp.Body.Close()) }()
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}
