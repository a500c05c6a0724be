// SPDX-License-Identifier: Apache-2.0

package netnslab_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	netnslab "github.com/rehome-net/rehome/netns-lab"
)

func TestStreamMeasuresTheGap(t *testing.T) {
	const pause = 50 * time.Millisecond
	client, server := net.Pipe()
	defer client.Close()
	go func() {
		defer server.Close()
		for _, wait := range []time.Duration{0, 0, pause, 0} {
			time.Sleep(wait) // the gap under test
			_, _ = server.Write([]byte("0123456789"))
		}
	}()
	d, err := netnslab.Stream(t.Context(), client, -1)
	if err != nil {
		t.Fatal(err)
	}
	if d.Bytes != 40 || d.GapAt != 20 || d.LongestGap < pause || d.LongestGap > d.Elapsed {
		t.Errorf("%+v", d)
	}
	if want := sha256.Sum256([]byte("0123456789012345678901234567890123456789")); d.SHA256 != want {
		t.Error("sum differs")
	}
}

func TestStreamEnds(t *testing.T) {
	cancelled, cancel := context.WithCancel(t.Context())
	defer cancel()
	for _, test := range []struct {
		name  string
		size  int64
		ctx   context.Context
		send  string
		bytes int64
		want  error
	}{
		{"at the size", 3, t.Context(), "abcd", 3, nil},
		{"at nothing", 0, t.Context(), "", 0, nil},
		{"too early", 5, t.Context(), "abcd", 4, io.ErrUnexpectedEOF},
		{"cancelled", -1, cancelled, "abcd", 4, context.Canceled},
	} {
		t.Run(test.name, func(t *testing.T) {
			client, server := net.Pipe()
			defer client.Close()
			go func() {
				_, _ = server.Write([]byte(test.send)) // cut short where the client stops
				if test.ctx == cancelled {
					cancel()
					return
				}
				_ = server.Close()
			}()
			d, err := netnslab.Stream(test.ctx, client, test.size)
			if d.Bytes != test.bytes || !errors.Is(err, test.want) {
				t.Errorf("%d bytes, %v; want %d, %v", d.Bytes, err, test.bytes, test.want)
			}
			_ = server.Close()
		})
	}
}

func TestPingPong(t *testing.T) {
	for _, test := range []struct {
		name   string
		server func(io.ReadWriter) error
		ping   netnslab.PingPong
		rounds int
		want   error
	}{
		{"echo", netnslab.Echo, netnslab.PingPong{Rounds: 10}, 10, nil},
		{"large", netnslab.Echo, netnslab.PingPong{Rounds: 10, Size: 100_000}, 10, nil},
		{"interval", netnslab.Echo, netnslab.PingPong{Rounds: 3, Interval: time.Millisecond}, 3, nil},
		{"liar", func(c io.ReadWriter) error {
			buf := make([]byte, 64)
			for range 2 {
				if _, err := io.ReadFull(c, buf); err != nil {
					return err
				}
				if _, err := c.Write(make([]byte, 64)); err != nil {
					return err
				}
			}
			return nil
		}, netnslab.PingPong{Rounds: 10}, 1, netnslab.ErrMismatch},
		{"hangs up", func(c io.ReadWriter) error {
			_, err := io.ReadFull(c, make([]byte, 64))
			return err
		}, netnslab.PingPong{Rounds: 10}, 0, io.EOF},
	} {
		t.Run(test.name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			go func() {
				c, err := l.Accept()
				if err != nil {
					return // the client's Dial fails too
				}
				_ = test.server(c) // the client sees what went wrong
				_ = c.Close()
			}()
			c, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			times, err := test.ping.Run(t.Context(), c)
			if times.Len() != test.rounds || !errors.Is(err, test.want) {
				t.Errorf("%d rounds, %v; want %d, %v", times.Len(), err, test.rounds, test.want)
			}
		})
	}
}

func TestPingPongEndsWithTheContext(t *testing.T) {
	client, server := net.Pipe()
	defer client.Close()
	defer server.Close()
	go func() { _ = netnslab.Echo(server) }() // ends with the pipe
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	times, err := netnslab.PingPong{Interval: time.Millisecond}.Run(ctx, client)
	if err != nil || times.Len() == 0 {
		t.Errorf("%d rounds, %v", times.Len(), err)
	}
	if _, err := (netnslab.PingPong{Rounds: 5}).Run(ctx, client); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("rounds left over: %v", err)
	}
}

func TestLatencies(t *testing.T) {
	var l netnslab.Latencies
	if l.Longest() != 0 || l.Median() != 0 {
		t.Error("something in nothing")
	}
	for i := 100; i > 0; i-- {
		l.Add(time.Duration(i))
	}
	for q, want := range map[float64]time.Duration{0: 1, 0.5: 50, 0.99: 99, 0.991: 100, 1: 100} {
		if got := l.Quantile(q); got != want {
			t.Errorf("quantile %v: %d, want %d", q, got, want)
		}
	}
	l.Add(1000)
	if l.Longest() != 1000 {
		t.Error("added after a quantile and not seen")
	}
}

func ExamplePingPong() {
	client, server := net.Pipe()
	go func() {
		_ = netnslab.Echo(server) // ends with the pipe
	}()
	times, err := netnslab.PingPong{Rounds: 100}.Run(context.Background(), client)
	_ = client.Close()
	fmt.Println(times.Len(), err, times.Longest() < time.Second)
	// Output: 100 <nil> true
}
