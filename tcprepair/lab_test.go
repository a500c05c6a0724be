// SPDX-License-Identifier: Apache-2.0

package tcprepair

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// deadline bounds every wait of the tests.
const deadline = 10 * time.Second

// host is a network namespace with one interface, a TUN whose other end is the test's wire. The namespace lives as long as the
// thread that made it, which is never used for anything else again.
type host struct {
	name string
	tun  *os.File
	jobs chan func()
	// sent counts the TCP packets of the wire's connection that came out of the host, resets those among them with RST.
	sent, resets int
	// marks counts the packets by which settle finds out that the wire has seen all that the host sent before.
	marks int
}

// do runs f in the host's namespace and waits for it.
func (h *host) do(f func()) {
	done := make(chan struct{})
	h.jobs <- func() { defer close(done); f() }
	<-done
}

func newHost(tb testing.TB, name string, addrs ...string) *host {
	tb.Helper()
	if os.Geteuid() != 0 {
		tb.Skip("needs root: network namespaces, TUN devices and TCP_REPAIR")
	}
	h := &host{name: name, jobs: make(chan func())}
	go func() {
		// Never unlocked: the thread ends with the goroutine, and the namespace with the thread.
		runtime.LockOSThread()
		for f := range h.jobs {
			f()
		}
	}()
	var err error
	h.do(func() { err = h.setUp(addrs) })
	if err != nil {
		close(h.jobs)
		tb.Fatalf("host %s: %v", name, err)
	}
	tb.Cleanup(func() {
		_ = h.tun.Close()
		close(h.jobs)
	})
	return h
}

func (h *host) setUp(addrs []string) error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open tun: %w", err)
	}
	ifr, err := unix.NewIfreq("tun0")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		return fmt.Errorf("make tun: %w", err)
	}
	h.tun = os.NewFile(uintptr(fd), "tun0")
	for _, name := range []string{"lo", "tun0"} {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(l); err != nil {
			return err
		}
		for _, a := range addrs {
			if name == "lo" {
				continue
			}
			addr, err := netlink.ParseAddr(a)
			if err != nil {
				return err
			}
			if err := netlink.AddrAdd(l, addr); err != nil {
				return fmt.Errorf("add %s: %w", a, err)
			}
		}
	}
	return nil
}

// sysctl sets net.* in the host's namespace.
func (h *host) sysctl(tb testing.TB, path, value string) {
	tb.Helper()
	var err error
	h.do(func() { err = os.WriteFile("/proc/sys/net/"+path, []byte(value), 0o600) })
	if err != nil {
		tb.Fatal(err)
	}
}

// wire joins a client and two servers that share one address: the packets of the client reach the owner only.
type wire struct {
	client, a, b *host

	mu    sync.Mutex
	owner *host
	// port is the server's, of the connection made last.
	port uint16
	// holdUp keeps the packets of the client, holdDown those to it, until they are released.
	holdUp, holdDown bool
	heldUp, heldDown [][]byte
	// trace tells the packets of the connection, for failures.
	trace []string
}

const (
	clientV4, serverV4 = "10.71.0.1", "10.71.0.2"
	clientV6, serverV6 = "fd71::1", "fd71::2"
)

func newWire(tb testing.TB) *wire {
	tb.Helper()
	w := &wire{
		client: newHost(tb, "client", clientV4+"/24", clientV6+"/64"),
		a:      newHost(tb, "a", serverV4+"/24", serverV6+"/64"),
		b:      newHost(tb, "b", serverV4+"/24", serverV6+"/64"),
	}
	w.owner = w.a
	var pumps sync.WaitGroup
	for _, h := range []*host{w.client, w.a, w.b} {
		pumps.Go(func() { w.pump(h) })
	}
	tb.Cleanup(func() { // runs before those of the hosts
		for _, h := range []*host{w.client, w.a, w.b} {
			_ = h.tun.Close()
		}
		pumps.Wait()
	})
	return w
}

func (w *wire) pump(h *host) {
	b := make([]byte, 1<<16)
	for {
		n, err := h.tun.Read(b)
		if err != nil {
			return // closed
		}
		switch p := append([]byte(nil), b[:n]...); {
		case isTCP(p):
			w.carry(h, p)
		case isMark(p):
			w.mu.Lock()
			h.marks++
			w.mu.Unlock()
		}
	}
}

func isTCP(p []byte) bool {
	const tcp = 6
	return len(p) >= 40 && (p[0]>>4 == 4 && p[9] == tcp || p[0]>>4 == 6 && p[6] == tcp)
}

// isMark recognizes UDP over IPv4, which only settle sends.
func isMark(p []byte) bool {
	const udp = 17
	return len(p) >= 28 && p[0]>>4 == 4 && p[9] == udp
}

// settle waits until the wire has taken all that h has sent so far.
func (w *wire) settle(tb testing.TB, h *host) {
	tb.Helper()
	w.mu.Lock()
	marks := h.marks
	w.mu.Unlock()
	var err error
	h.do(func() {
		var fd int
		if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err == nil {
			err = unix.Sendto(fd, []byte{0}, 0, &unix.SockaddrInet4{Port: 9, Addr: netip.MustParseAddr("10.71.0.3").As4()})
			_ = unix.Close(fd)
		}
	})
	if err != nil {
		tb.Fatal(err)
	}
	waitFor(tb, "the wire", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return h.marks > marks
	})
}

func tcpFlags(p []byte) byte {
	if p[0]>>4 == 4 {
		return p[int(p[0]&15)*4+13]
	}
	return p[40+13]
}

func (w *wire) carry(h *host, p []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.ours(p) {
		return // the end of an earlier connection
	}
	w.trace = append(w.trace, fmt.Sprintf("%s %s", h.name, describePacket(p)))
	h.sent++
	if tcpFlags(p)&4 != 0 {
		h.resets++
	}
	switch {
	case h == w.client && w.holdUp:
		w.heldUp = append(w.heldUp, p)
	case h == w.client:
		_, _ = w.owner.tun.Write(p) // a closed device at the end of the test
	case w.holdDown:
		w.heldDown = append(w.heldDown, p)
	default:
		_, _ = w.client.tun.Write(p)
	}
}

// ours reports whether a packet is one of the connection made last.
func (w *wire) ours(p []byte) bool {
	t := p[40:]
	if p[0]>>4 == 4 {
		t = p[int(p[0]&15)*4:]
	}
	return binary.BigEndian.Uint16(t) == w.port || binary.BigEndian.Uint16(t[2:]) == w.port
}

func describePacket(p []byte) string {
	t := p[40:]
	if p[0]>>4 == 4 {
		t = p[int(p[0]&15)*4:]
	}
	return fmt.Sprintf("flags %#x seq %d ack %d window %d, %d bytes", t[13], binary.BigEndian.Uint32(t[4:]), binary.BigEndian.Uint32(t[8:]),
		binary.BigEndian.Uint16(t[14:]), len(t)-int(t[12]>>4)*4)
}

// dump logs the trace if the test has failed.
func (w *wire) dump(tb testing.TB) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if tb.Failed() {
		for _, l := range w.trace {
			tb.Log(l)
		}
	}
}

// hold sets what is held. What was held and is not any more arrives now, in order.
func (w *wire) hold(up, down bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.holdUp = up; !up {
		for _, p := range w.heldUp {
			_, _ = w.owner.tun.Write(p)
		}
		w.heldUp = nil
	}
	if w.holdDown = down; !down {
		for _, p := range w.heldDown {
			_, _ = w.client.tun.Write(p)
		}
		w.heldDown = nil
	}
}

// forget ends all holding, delivering nothing, and starts counting anew.
func (w *wire) forget() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.holdUp, w.holdDown, w.heldUp, w.heldDown, w.trace = false, false, nil, nil, nil
	for _, h := range []*host{w.client, w.a, w.b} {
		h.sent, h.resets = 0, 0
	}
}

// own points the path at h.
func (w *wire) own(h *host) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.owner = h
}

// silence stops listening to h, for good: what it sends fills its device's queue and is dropped there, which wakes nobody.
func (w *wire) silence(tb testing.TB, h *host) {
	tb.Helper()
	raw, err := h.tun.SyscallConn()
	if err != nil {
		tb.Fatal(err)
	}
	fd := -1
	if e := raw.Control(func(tun uintptr) { fd, err = unix.Dup(int(tun)) }); e != nil || err != nil {
		tb.Fatal(e, err)
	}
	_ = h.tun.Close()
	tb.Cleanup(func() { _ = unix.Close(fd) })
}

// count returns how many TCP packets, and how many resets, have come out of h.
func (w *wire) count(h *host) (sent, resets int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return h.sent, h.resets
}

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

// readEOF reads what is left of a stream.
func readEOF(tb testing.TB, fd int) []byte {
	tb.Helper()
	var all []byte
	b := make([]byte, 1<<16)
	waitFor(tb, "the end of the stream", func() bool {
		n, err := socket(fd).receive(b, 0)
		if err != nil && !errors.Is(err, unix.EAGAIN) {
			tb.Fatalf("read after %d bytes: %v", len(all), err)
		}
		all = append(all, b[:n]...)
		return err == nil && n == 0
	})
	return all
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
