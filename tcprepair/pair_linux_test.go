// SPDX-License-Identifier: Apache-2.0

package tcprepair

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// deadline bounds every wait of the tests.
const deadline = 10 * time.Second

// pair is a connection: two descriptors, non-blocking, closed with the test.
type pair struct {
	client, server int
	// serverHost is where server lives.
	serverHost *host
}

// family is one of the three ways to speak to a server.
type family string

const (
	v4     family = "v4"
	v6     family = "v6"
	mapped family = "v4-mapped"
)

// connect makes a connection to host a, tuning both the listener's and the client's socket before.
func (w *wire) connect(tb testing.TB, f family, tune func(listener, client int)) *pair {
	tb.Helper()
	w.own(w.a)
	p := &pair{client: -1, server: -1, serverHost: w.a}
	listener := -1
	var err error
	var port uint16
	w.a.do(func() { listener, port, err = listenOn(f) })
	if err != nil {
		tb.Fatalf("listen: %v", err)
	}
	defer func() { _ = unix.Close(listener) }()
	clientFamily, to := unix.AF_INET, netip.MustParseAddr(serverV4)
	if f == v6 {
		clientFamily, to = unix.AF_INET6, netip.MustParseAddr(serverV6)
	}
	w.client.do(func() { p.client, err = unix.Socket(clientFamily, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0) })
	if err != nil {
		tb.Fatal(err)
	}
	w.mu.Lock()
	w.port = port
	w.mu.Unlock()
	if tune != nil {
		tune(listener, p.client)
	}
	var addr unix.Sockaddr = &unix.SockaddrInet4{Port: int(port), Addr: [4]byte(to.AsSlice()[:4])}
	if f == v6 {
		addr = &unix.SockaddrInet6{Port: int(port), Addr: to.As16()}
	}
	if err := unix.Connect(p.client, addr); err != nil {
		tb.Fatalf("connect: %v", err)
	}
	p.server, _, err = unix.Accept4(listener, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
	if err != nil {
		tb.Fatalf("accept: %v", err)
	}
	if err := unix.SetNonblock(p.client, true); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		// With a RST, so that no connection of one test sends into the next.
		for _, fd := range []int{p.client, p.server} {
			if fd >= 0 {
				_ = socket(fd).setPair(unix.SOL_SOCKET, unix.SO_LINGER, [2]uint32{1, 0})
				_ = unix.Close(fd)
			}
		}
	})
	return p
}

// listenOn runs in the server's namespace.
func listenOn(f family) (fd int, port uint16, err error) {
	domain, addr := unix.AF_INET, netip.MustParseAddr(serverV4)
	switch f {
	case v6:
		domain, addr = unix.AF_INET6, netip.MustParseAddr(serverV6)
	case mapped:
		domain, addr = unix.AF_INET6, netip.IPv6Unspecified()
	}
	if fd, err = unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return -1, 0, err
	}
	if err = socket(fd).bind(netip.AddrPortFrom(addr, 0), false); err != nil {
		return fd, 0, err
	}
	if err = unix.Listen(fd, 8); err != nil {
		return fd, 0, err
	}
	local, _, err := socket(fd).localAddr()
	return fd, local.Port(), err
}

// ramp returns n bytes of a stream, from an offset on: with a prime period, lost, doubled and shifted bytes all show.
func ramp(from, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte((from + i) % 251)
	}
	return b
}

// writeAll writes b to a non-blocking socket.
func writeAll(tb testing.TB, fd int, b []byte) {
	tb.Helper()
	waitFor(tb, "room in the send queue", func() bool {
		if n, err := socket(fd).send(b); err == nil {
			b = b[n:]
		} else if !errors.Is(err, unix.EAGAIN) {
			tb.Fatalf("write: %v", err)
		}
		return len(b) == 0
	})
}

// readExactly reads n bytes from a non-blocking socket.
func readExactly(tb testing.TB, fd, n int) []byte {
	tb.Helper()
	b := make([]byte, n)
	got := 0
	waitFor(tb, fmt.Sprintf("%d bytes", n), func() bool {
		m, err := socket(fd).receive(b[got:], 0)
		if err != nil && !errors.Is(err, unix.EAGAIN) {
			tb.Fatalf("read after %d of %d bytes: %v", got, n, err)
		}
		got += m
		return got == n
	})
	return b
}

// waitFor waits until a condition holds.
func waitFor(tb testing.TB, what string, ok func() bool) {
	tb.Helper()
	for end := time.Now().Add(deadline); !ok(); time.Sleep(50 * time.Microsecond) {
		if time.Now().After(end) {
			tb.Fatalf("%s: not within %s", what, deadline)
		}
	}
}

// infoOf reads TCP_INFO.
func infoOf(tb testing.TB, fd int) tcpInfo {
	tb.Helper()
	var info tcpInfo
	if _, err := socket(fd).info(&info); err != nil {
		tb.Fatalf("TCP_INFO: %v", err)
	}
	return info
}

func waitState(tb testing.TB, fd int, want State) {
	tb.Helper()
	waitFor(tb, "state "+want.String(), func() bool { return infoOf(tb, fd).state == want })
}

// queues returns the bytes that wait in the receive and in the send queue, and those of the latter that were not sent.
func queues(tb testing.TB, fd int) (in, out, unsent int) {
	tb.Helper()
	for _, q := range []struct {
		n       *int
		request uintptr
	}{{&in, unix.TIOCINQ}, {&out, unix.TIOCOUTQ}, {&unsent, unix.SIOCOUTQNSD}} {
		var err error
		if *q.n, err = socket(fd).ioctl(q.request); err != nil {
			tb.Fatal(err)
		}
	}
	return in, out, unsent
}
