// SPDX-License-Identifier: Apache-2.0

package tcprepair

import (
	"errors"
	"net/netip"
	"runtime"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// tcpMD5Sig is struct tcp_md5sig.
type tcpMD5Sig struct {
	addr      [128]byte
	flags     uint8
	prefixLen uint8
	keyLen    uint16
	ifindex   int32
	key       [80]byte
}

func setMD5(tb testing.TB, fd int, peer string) {
	tb.Helper()
	var sa sockaddrBytes
	n := putSockaddr(&sa, netip.AddrPortFrom(netip.MustParseAddr(peer), 0), false)
	sig := tcpMD5Sig{keyLen: 6}
	copy(sig.addr[:], sa[:n])
	copy(sig.key[:], "secret")
	err := socket(fd).setsockopt(unix.IPPROTO_TCP, unix.TCP_MD5SIG, unsafe.Pointer(&sig), unsafe.Sizeof(sig))
	if errors.Is(err, unix.ENOPROTOOPT) {
		tb.Skip("this kernel has no TCP-MD5 (CONFIG_TCP_MD5SIG)")
	}
	if err != nil {
		tb.Fatal(err)
	}
}

// freezeRefused wants Freeze to fail, and the socket to be as it was.
func freezeRefused(tb testing.TB, h *host, fd int, want error) {
	tb.Helper()
	reuse, err := socket(fd).get(unix.SOL_SOCKET, unix.SO_REUSEADDR)
	if err != nil {
		tb.Fatal(err)
	}
	h.do(func() { err = Freeze(fd) })
	var op *OpError
	if !errors.Is(err, want) || !errors.As(err, &op) || op.Op != "freeze" {
		tb.Fatalf("got %v, want %v", err, want)
	}
	if repair, err := socket(fd).get(unix.IPPROTO_TCP, unix.TCP_REPAIR); err == nil && repair != 0 {
		tb.Error("the socket is left in repair mode")
	}
	if now, err := socket(fd).get(unix.SOL_SOCKET, unix.SO_REUSEADDR); err != nil || now != reuse {
		tb.Errorf("SO_REUSEADDR is %d, was %d (%v)", now, reuse, err)
	}
}

// talk proves that a connection works, both ways.
func talk(tb testing.TB, p *pair) {
	tb.Helper()
	writeAll(tb, p.client, ramp(0, 100))
	readExactly(tb, p.server, 100)
	writeAll(tb, p.server, ramp(0, 100))
	readExactly(tb, p.client, 100)
}

func TestFreezeRefusesStates(t *testing.T) {
	w := newWire(t)
	p := w.connect(t, v4, nil)
	for _, c := range []struct {
		name string
		open func() (int, error)
	}{
		{"listen", func() (fd int, err error) { fd, _, err = listenOn(v4); return fd, err }},
		{"close", func() (int, error) { return unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0) }},
		{"syn-sent", func() (int, error) {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
			if err == nil { // nobody has this address, and nobody says so
				if e := socket(fd).connect(netip.MustParseAddrPort("10.71.0.9:80"), false); !errors.Is(e, unix.EINPROGRESS) {
					err = e
				}
			}
			return fd, err
		}},
		{"udp", func() (int, error) { return unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			var fd int
			var err error
			w.a.do(func() { fd, err = c.open() })
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = unix.Close(fd) }()
			freezeRefused(t, w.a, fd, ErrState)
		})
	}
	// What is TIME_WAIT on the wire is CLOSE for the descriptor.
	t.Run("time-wait", func(t *testing.T) {
		if err := errors.Join(socket(p.server).shutdownWrite(), socket(p.client).shutdownWrite()); err != nil {
			t.Fatal(err)
		}
		waitState(t, p.server, closed)
		freezeRefused(t, w.a, p.server, ErrState)
	})
	t.Run("not-a-socket", func(t *testing.T) { // nor a descriptor
		if err := Freeze(-1); !errors.Is(err, unix.EBADF) {
			t.Errorf("got %v", err)
		}
	})
}

func TestFreezeRefusesMPTCP(t *testing.T) {
	const mptcp = 262
	w := newWire(t)
	var listener, client, server int
	var addr unix.Sockaddr
	var err error
	w.a.do(func() {
		if listener, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, mptcp); err == nil {
			err = errors.Join(unix.Bind(listener, &unix.SockaddrInet4{Addr: netip.MustParseAddr(serverV4).As4()}), unix.Listen(listener, 1))
			addr, _ = unix.Getsockname(listener)
		}
	})
	if errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.ENOPROTOOPT) {
		t.Skip("this kernel has no MPTCP (CONFIG_MPTCP, net.mptcp.enabled)")
	}
	if err != nil {
		t.Fatal(err)
	}
	w.mu.Lock()
	w.port = uint16(addr.(*unix.SockaddrInet4).Port)
	w.mu.Unlock()
	w.client.do(func() { client, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, mptcp) })
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Connect(client, addr); err != nil {
		t.Fatal(err)
	}
	if server, _, err = unix.Accept4(listener, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	for _, fd := range []int{listener, client, server} {
		t.Cleanup(func() { _ = unix.Close(fd) })
	}
	freezeRefused(t, w.a, server, ErrMPTCP)
	if err := unix.SetNonblock(client, true); err != nil {
		t.Fatal(err)
	}
	talk(t, &pair{client: client, server: server})
}

func TestFreezeRefusesMD5(t *testing.T) {
	w := newWire(t)
	for _, f := range []family{v4, v6} {
		t.Run(string(f), func(t *testing.T) {
			clientAddr, serverAddr := clientV4, serverV4
			if f == v6 {
				clientAddr, serverAddr = clientV6, serverV6
			}
			p := w.connect(t, f, func(listener, client int) {
				setMD5(t, listener, clientAddr)
				setMD5(t, client, serverAddr)
			})
			freezeRefused(t, w.a, p.server, ErrAuth)
			talk(t, p)
		})
	}
}

// TestFreezeSmallMSS freezes connections whose MSS does not tell that they are unsigned: the peer's, and that of a small window.
func TestFreezeSmallMSS(t *testing.T) {
	w := newWire(t)
	for name, option := range map[string]int{"peer's MSS": unix.TCP_MAXSEG, "window": unix.TCP_WINDOW_CLAMP} {
		t.Run(name, func(t *testing.T) {
			p := w.connect(t, v4, func(_, client int) {
				if err := socket(client).set(unix.IPPROTO_TCP, option, 1300); err != nil {
					t.Fatal(err)
				}
			})
			s := w.move(t, p, false)
			w.move(t, p, false)
			talk(t, p)
			t.Log(s.Negotiated.MSS, infoOf(t, p.server).sendMSS)
		})
	}
}

func TestFreezeRefusesULP(t *testing.T) {
	w := newWire(t)
	p := w.connect(t, v4, nil)
	if err := socket(p.server).setName(unix.IPPROTO_TCP, unix.TCP_ULP, "tls"); err != nil {
		t.Skipf("this kernel has no ULP to try (CONFIG_TLS): %v", err)
	}
	freezeRefused(t, w.a, p.server, ErrULP)
}

// without runs f in h's namespace, on a thread that lacks a capability.
func without(tb testing.TB, h *host, capability uint, f func()) {
	tb.Helper()
	var ns int
	var err error
	h.do(func() { ns, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0) })
	if err != nil {
		tb.Fatal(err)
	}
	defer func() { _ = unix.Close(ns) }()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread ends here
		done <- func() error {
			if err := unix.Setns(ns, unix.CLONE_NEWNET); err != nil {
				return err
			}
			header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
			var data [2]unix.CapUserData
			if err := unix.Capget(&header, &data[0]); err != nil {
				return err
			}
			data[capability/32].Effective &^= 1 << (capability % 32)
			if err := unix.Capset(&header, &data[0]); err != nil {
				return err
			}
			f()
			return nil
		}()
	}()
	if err := <-done; err != nil {
		tb.Fatal(err)
	}
}

func TestPermissions(t *testing.T) {
	w := newWire(t)
	p := w.connect(t, v4, nil)
	s := &stream{p: p}
	w.arrange(t, s, CloseWait, empty)
	var err error
	without(t, w.a, unix.CAP_NET_ADMIN, func() { err = Freeze(p.server) })
	if !errors.Is(err, ErrPermission) || !errors.Is(err, unix.EPERM) {
		t.Errorf("freeze: %v", err)
	}
	if _, err := Take(p.server, Limits{}); !errors.Is(err, ErrState) {
		t.Errorf("snapshot of a connection that is not frozen: %v", err)
	}
	if err := Discard(p.server); !errors.Is(err, ErrState) {
		t.Errorf("discard of a connection that is not frozen: %v", err)
	}
	w.a.do(func() { err = Freeze(p.server) })
	if err != nil {
		t.Fatal(err)
	}
	snap, err := Take(p.server, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	for _, capability := range []uint{unix.CAP_NET_ADMIN, unix.CAP_NET_RAW} {
		fds := openFiles(t)
		without(t, w.b, capability, func() { _, err = Restore(snap, RestoreConfig{}) })
		if !errors.Is(err, ErrPermission) {
			t.Errorf("restore without capability %d: %v", capability, err)
		}
		if now := openFiles(t); now != fds {
			t.Errorf("%d descriptors are open, %d were", now, fds)
		}
	}
	if err := Resume(p.server); err != nil {
		t.Fatal(err)
	}
	w.finish(t, s, CloseWait)
}
