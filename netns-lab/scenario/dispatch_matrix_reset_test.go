// SPDX-License-Identifier: Apache-2.0

package scenario_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rehome-net/rehome/dispatcher"
	"github.com/rehome-net/rehome/netns-lab/scenario"
)

// TestDispatchResets lets clients give up at random moments of their handoff. Nothing may be left of their connections anywhere, and no
// server may be left waiting for one.
func TestDispatchResets(t *testing.T) {
	t.Parallel()
	const each, clients, seed = 500, 8, 2
	b, servers := matrixBench(t, "resets")
	m := &matrix{bench: b, servers: servers, client: b.Host(scenario.ClientHost)}
	m.port.Store(10000)
	ctx := testContext(t, time.Minute)
	// What is opened for the first connection stays.
	for _, c := range combinations() {
		if c.size == 100 && c.shape == plain && c.options == allOptions()[0] {
			if err := m.run(ctx, c); err != nil {
				t.Fatalf("%v: %v", c, err)
			}
		}
	}
	before := settle(t, m, nil)
	var seen, hung atomic.Int64
	swallow := func(c net.Conn) {
		seen.Add(1)
		_ = c.SetReadDeadline(time.Now().Add(exchangeTime))
		if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
			hung.Add(1)
		}
	}
	servers.others.Store(&swallow)
	for _, d := range []dispatcher.Delivery{dispatcher.DeliveryLinked, dispatcher.DeliveryFD, dispatcher.DeliveryUnmodified} {
		t.Run(string(d), func(t *testing.T) {
			seen.Store(0)
			begin := time.Now()
			var next atomic.Int64
			var group sync.WaitGroup
			for n := range clients {
				group.Go(func() {
					random := rand.New(rand.NewPCG(seed, uint64(n)))
					for next.Add(1) <= each {
						if err := m.giveUp(ctx, d, random); err != nil {
							t.Error(err)
						}
					}
				})
			}
			group.Wait()
			took := time.Since(begin)
			awaitTrue(t, exchangeTime+time.Second, func() error {
				if n := servers.open.Load(); n != 0 {
					return fmt.Errorf("%d connections are at the servers", n)
				}
				return nil
			})
			if hung.Load() != 0 {
				t.Errorf("%d servers heard nothing of their client's end", hung.Load())
			}
			if n := seen.Load(); n == 0 || n == each {
				t.Errorf("%d of %d connections came to a server: the moments are not well chosen", n, each)
			}
			t.Logf("%d connections reset in %v, %d of them seen by a server", each, took, seen.Load())
		})
	}
	settle(t, m, before)
	values, err := b.Metrics(ctx)
	if err != nil {
		t.Fatal(err)
	}
	// A client that goes away is no failure of anybody's.
	if n := values["handoff_failures_total{result=unserved}"]; n != 0 {
		t.Errorf("%v clients that went away are counted as not served", n)
	}
}

// giveUp sends a request, or part of one, and resets the connection soon after.
func (m *matrix) giveUp(ctx context.Context, d dispatcher.Delivery, random *rand.Rand) error {
	mode := matrixModes()[random.IntN(2)]
	c := combination{delivery: d, mode: mode, options: allOptions()[0], size: []int{100, 4 << 10, 64 << 10}[random.IntN(3)]}
	to := m.bench.Target(matrixPorts(mode)[d], random.IntN(2) == 0)
	x := c.exchange(to)
	conn, err := m.dial(ctx, to, nil)
	if err != nil {
		return err
	}
	if _, err := conn.Write(x.messages[0]); err != nil {
		return errors.Join(err, conn.Close())
	}
	for until := time.Now().Add(time.Duration(random.IntN(1000)) * time.Microsecond); time.Now().Before(until); {
		// A sleep would be longer than most handoffs.
	}
	if err := conn.SetLinger(0); err != nil {
		return errors.Join(err, conn.Close())
	}
	return conn.Close()
}

// settle waits until hosts keep no more than they did before, and nothing of any connection. It returns what they keep.
func settle(t *testing.T, m *matrix, before map[string]int) map[string]int {
	t.Helper()
	now := make(map[string]int)
	awaitTrue(t, 20*time.Second, func() error {
		var left []string
		say := func(format string, args ...any) { left = append(left, fmt.Sprintf(format, args...)) }
		for _, host := range append(matrixHosts(), scenario.FrontHost) {
			k, err := m.bench.Keeps(host)
			if err != nil {
				return err
			}
			now[host] = k.Descriptors
			if k.Flows != 0 || k.Held != 0 {
				say("%s has %d flows, %d of them held", host, k.Flows, k.Held)
			}
			if before != nil && k.Descriptors > before[host] {
				say("%s has %d descriptors open, %d before", host, k.Descriptors, before[host])
			}
		}
		if n := m.servers.open.Load(); n != 0 {
			say("%d connections are at the servers", n)
		}
		values, err := m.bench.Metrics(testContext(t, 5*time.Second))
		if err != nil {
			return err
		}
		for name, v := range values {
			if v != 0 && (strings.HasPrefix(name, "peeking{") || strings.HasPrefix(name, "backend_active{") || strings.HasPrefix(name, "service_active{")) {
				say("%s is %v", name, v)
			}
		}
		if len(left) > 0 {
			return errors.New(strings.Join(left, "; "))
		}
		return nil
	})
	return now
}
