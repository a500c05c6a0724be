// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// shortRequest is the request of all measurements with short requests.
const shortRequest = "GET /small HTTP/1.1\r\nHost: " + ShopName + "\r\n\r\n"

// Latency says how long a client waits that connects, sends a short request and reads the first byte of its answer. In microseconds.
type Latency struct {
	// Connect is until the client is connected, Answer from there to the first byte, Total both.
	Connect, Answer, Total Quantiles
}

// AddedLatency compares a front with no front. Samples alternate, so that whatever else the machine does befalls both.
type AddedLatency struct {
	Direct, Front Latency
	// Median and P99 are the differences of the totals' quantiles, in microseconds.
	Median, P99 int64
}

// MeasureLatency takes n samples of each, one after the other, each with a new connection.
func MeasureLatency(ctx context.Context, f *Farm, front Front, n int) (AddedLatency, error) {
	plain, err := Direct().Target(f, Files, false)
	if err != nil {
		return AddedLatency{}, err
	}
	through, err := front.Target(f, Files, false)
	if err != nil {
		return AddedLatency{}, err
	}
	var direct, behind samples
	// System calls without Go's poller and scheduler between: these would be the larger part of what is measured.
	err = f.Client().Do(func() error {
		for i := range n {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := errors.Join(direct.take(plain), behind.take(through)); err != nil {
				return fmt.Errorf("request %d: %w", i, err)
			}
		}
		return nil
	})
	if err != nil {
		return AddedLatency{}, err
	}
	a := AddedLatency{Direct: direct.latency(), Front: behind.latency()}
	a.Median, a.P99 = a.Front.Total.Median-a.Direct.Total.Median, a.Front.Total.P99-a.Direct.Total.P99
	return a, nil
}

// samples are in nanoseconds.
type samples struct{ connect, answer, total []int64 }

func (s *samples) latency() Latency {
	micros := func(v []int64) Quantiles {
		q := quantiles(v)
		return Quantiles{Median: q.Median / 1000, P99: q.P99 / 1000, Max: q.Max / 1000}
	}
	return Latency{Connect: micros(s.connect), Answer: micros(s.answer), Total: micros(s.total)}
}

// take adds one sample.
func (s *samples) take(to netip.AddrPort) (err error) {
	domain := unix.AF_INET
	if to.Addr().Is6() {
		domain = unix.AF_INET6
	}
	fd, err := unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer func() { err = errors.Join(err, os.NewSyscallError("close", unix.Close(fd))) }()
	limit := unix.NsecToTimeval(int64(askTimeout))
	for _, opt := range []int{unix.SO_RCVTIMEO, unix.SO_SNDTIMEO} {
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, opt, &limit); err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
	}
	begin := time.Now()
	// A connect that is repeated waits for the first one's end.
	if _, err := uninterrupted(func() (int, error) { return 0, unix.Connect(fd, sockaddr(to)) }); err != nil {
		return os.NewSyscallError("connect", err)
	}
	connected := time.Now()
	if _, err := uninterrupted(func() (int, error) { return unix.Write(fd, []byte(shortRequest)) }); err != nil {
		return os.NewSyscallError("write", err)
	}
	buf := make([]byte, 4096)
	n, err := uninterrupted(func() (int, error) { return unix.Read(fd, buf) })
	end := time.Now()
	if err != nil {
		return os.NewSyscallError("read", err)
	}
	const ok = "HTTP/1.1 200"
	if n < len(ok) || string(buf[:len(ok)]) != ok {
		return fmt.Errorf("answer of %v: %q", to, buf[:n])
	}
	s.connect = append(s.connect, int64(connected.Sub(begin)))
	s.answer = append(s.answer, int64(end.Sub(connected)))
	s.total = append(s.total, int64(end.Sub(begin)))
	return nil
}

// uninterrupted repeats a system call that a signal ended: Go's runtime sends itself some.
func uninterrupted(call func() (int, error)) (int, error) {
	for {
		n, err := call()
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}
