// SPDX-License-Identifier: Apache-2.0

package synproxy

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/dispatcher/forward"
	"github.com/rehome-net/rehome/handoff/cookie"
	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/handoff/reqsk"
	netnslab "github.com/rehome-net/rehome/netns-lab"
	"github.com/rehome-net/rehome/netns-lab/labtest"
	"github.com/rehome-net/rehome/netns-lab/leakcheck"
)

func TestMain(m *testing.M) {
	os.Exit(leakcheck.Main(m, leakcheck.Config{Namespaces: "rh-" + labtest.Prefix()}))
}

// patience bounds every wait of the tests.
const patience = 10 * time.Second

// port is the service's.
const port = 8000

// rig is a client, a dispatcher's host, and servers whose programs know nothing of it: node i+1 is servers[i].
type rig struct {
	lab           *netnslab.Lab
	client, entry *netnslab.Host
	servers       []*netnslab.Host
	vip4, vip6    netip.Addr

	secret    cookie.Secret
	forwarder *forward.Forwarder
	proxy     *Proxy
	acceptors []*cookie.Acceptor

	mu      sync.Mutex
	reports []cookie.Report
	decide  func(Request) Decision
}

// rigConfig is what tests change.
type rigConfig struct {
	servers int
	// change may change the proxy's configuration.
	change func(*Config)
	// stack gives it a reqsk.Injector.
	stack bool
	// retry gives connections that were reported to the next node.
	retry bool
	// topology may change the lab.
	topology func(*netnslab.Topology)
}

func newRig(t testing.TB, c rigConfig) *rig {
	t.Helper()
	topo := netnslab.Standard(max(c.servers, 1))
	if c.topology != nil {
		c.topology(&topo)
	}
	lab := labtest.New(t, topo)
	r := &rig{
		lab: lab, client: labtest.Host(t, lab, "client"), entry: labtest.Host(t, lab, "entry"), vip4: topo.VIP4(), vip6: topo.VIP6(),
		secret: cookie.Secret{1, 2, 3},
		decide: func(Request) Decision { return Decision{Verb: Forward, Node: 1} },
	}
	config := Config{
		Interface: netnslab.Interface, Parameters: cookie.Parameters{Secret: r.secret},
		Decide: func(q Request) Decision {
			r.mu.Lock()
			d := r.decide
			r.mu.Unlock()
			return d(q)
		},
	}
	config.Logger = slog.New(slog.NewTextHandler(t.Output(), nil))
	if c.stack {
		in := open(t, r.entry, func() (*reqsk.Injector, error) { return reqsk.Open(reqsk.Config{}) })
		config.Stack = in
	}
	// The proxy's place is behind the forwarder, which puts itself in front.
	late := &lateTable{}
	config.Table = late
	if c.change != nil {
		c.change(&config)
	}
	r.proxy = open(t, r.entry, func() (*Proxy, error) { return Open(config) })
	r.forwarder = open(t, r.entry, func() (*forward.Forwarder, error) {
		return forward.Open(forward.Config{Interfaces: []string{netnslab.Interface}, MaxFlows: 1 << 16})
	})
	late.Table = r.forwarder
	from := locate(t, r.entry)
	for i := range max(c.servers, 1) {
		h := labtest.Host(t, lab, string(rune('a'+i)))
		r.servers = append(r.servers, h)
		to := locate(t, h)
		if err := errors.Join(
			r.forwarder.SetNode(gate.Node(i+1), from.index, to.mac, from.mac), r.proxy.SetNode(gate.Node(i+1), from.index, to.mac, from.mac),
		); err != nil {
			t.Fatal(err)
		}
		a := open(t, h, func() (*cookie.Acceptor, error) {
			return cookie.Open(cookie.Config{Interface: netnslab.Interface, Parameters: cookie.Parameters{Secret: r.secret}})
		})
		r.acceptors = append(r.acceptors, a)
		background(t, func(ctx context.Context) error {
			return a.Run(ctx, func(report cookie.Report) {
				r.mu.Lock()
				r.reports = append(r.reports, report)
				r.mu.Unlock()
				if c.retry {
					if err := r.proxy.Return(report.Flow); err != nil {
						t.Errorf("return: %v", err)
					}
				}
			})
		})
	}
	r.serve(t, port)
	background(t, r.proxy.Run)
	return r
}

// serve makes a port a service of the proxy and all acceptors.
func (r *rig) serve(t testing.TB, port int) {
	t.Helper()
	for _, vip := range []netip.Addr{r.vip4, r.vip6} {
		at := netip.AddrPortFrom(vip, uint16(port))
		err := r.proxy.AddService(at)
		for _, a := range r.acceptors {
			err = errors.Join(err, a.AddService(at))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// lateTable is a table that comes later.
type lateTable struct{ Table }

// setDecide replaces what decides.
func (r *rig) setDecide(f func(Request) Decision) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.decide = f
}

func (r *rig) reported() []cookie.Report {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]cookie.Report(nil), r.reports...)
}

// background runs f until the test ends.
func background(t testing.TB, f func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(patience):
			t.Errorf("does not end")
		}
	})
}

// open opens something on a host, for the test's time.
func open[T io.Closer](t testing.TB, h *netnslab.Host, f func() (T, error)) T {
	t.Helper()
	var v T
	var failed error
	if err := h.Do(func() error {
		v, failed = f()
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if errors.Is(failed, cookie.ErrUnsupported) || errors.Is(failed, reqsk.ErrUnsupported) {
		t.Skip(failed)
	}
	if failed != nil {
		t.Fatal(failed)
	}
	t.Cleanup(func() {
		if err := v.Close(); err != nil {
			t.Error(err)
		}
	})
	return v
}

type place struct {
	index int
	mac   net.HardwareAddr
}

func locate(t testing.TB, h *netnslab.Host) place {
	t.Helper()
	var p place
	if err := h.Do(func() error {
		i, err := net.InterfaceByName(netnslab.Interface)
		if err == nil {
			p = place{i.Index, i.HardwareAddr}
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return p
}

// option is a socket option.
type option struct{ level, name, value int }

func listen(t testing.TB, h *netnslab.Host, address string, mptcp bool, set ...option) *net.TCPListener {
	t.Helper()
	c := net.ListenConfig{Control: setAll(set)}
	c.SetMultipathTCP(mptcp)
	var l net.Listener
	if err := h.Do(func() (err error) {
		l, err = c.Listen(context.Background(), "tcp", address)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l.(*net.TCPListener)
}

func setAll(set []option) func(_, _ string, raw syscall.RawConn) error {
	return func(_, _ string, raw syscall.RawConn) error {
		var failed error
		err := raw.Control(func(fd uintptr) {
			for _, o := range set {
				failed = errors.Join(failed, unix.SetsockoptInt(int(fd), o.level, o.name, o.value))
			}
		})
		return errors.Join(err, failed)
	}
}

func (r *rig) dial(t testing.TB, to netip.AddrPort, local int, set ...option) *net.TCPConn {
	t.Helper()
	c, err := r.tryDial(to, local, set...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func (r *rig) tryDial(to netip.AddrPort, local int, set ...option) (*net.TCPConn, error) {
	var c net.Conn
	err := r.client.Do(func() (err error) {
		d := net.Dialer{Control: setAll(set), Timeout: patience}
		if local != 0 {
			d.LocalAddr = &net.TCPAddr{Port: local}
		}
		d.SetMultipathTCP(false)
		c, err = d.Dial("tcp", to.String())
		return err
	})
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), c.SetDeadline(time.Now().Add(patience))
}

func accept(t testing.TB, l *net.TCPListener) *net.TCPConn {
	t.Helper()
	if err := l.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	c, err := l.AcceptTCP()
	if err != nil {
		t.Fatalf("accept: %v", err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return c
}

// ramp is a stretch of a stream with a prime period: lost, doubled and shifted bytes all show.
func ramp(t testing.TB, from, n int) []byte {
	t.Helper()
	b, err := io.ReadAll(netnslab.NewRamp(int64(from), int64(n)))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func send(t testing.TB, what string, c net.Conn, from, n int) {
	t.Helper()
	if _, err := c.Write(ramp(t, from, n)); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// transfer sends a stretch of the ramp from one to the other.
func transfer(t testing.TB, what string, from, to net.Conn, at, n int) {
	t.Helper()
	sent := make(chan error, 1)
	go func() {
		_, err := from.Write(ramp(t, at, n))
		sent <- err
	}()
	expect(t, what, to, at, n)
	if err := <-sent; err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

func expect(t testing.TB, what string, c net.Conn, from, n int) {
	t.Helper()
	got := make([]byte, n)
	if m, err := io.ReadFull(c, got); err != nil {
		t.Fatalf("%s: %d of %d bytes: %v", what, m, n, err)
	}
	if want := ramp(t, from, n); !bytes.Equal(got, want) {
		at := 0
		for got[at] == want[at] {
			at++
		}
		t.Fatalf("%s: byte %d is %d, want %d", what, at, got[at], want[at])
	}
}

// undisturbed checks that the client never had to send anything again.
func undisturbed(t testing.TB, c *net.TCPConn) {
	t.Helper()
	info, err := netnslab.ReadTCPInfo(c)
	if err != nil {
		t.Fatal(err)
	}
	if info.Retransmitted != 0 || info.Timeouts != 0 || info.Duplicates != 0 {
		t.Errorf("%v: %d segments sent again, %d timeouts, %d duplicates", c.LocalAddr(), info.Retransmitted, info.Timeouts, info.Duplicates)
	}
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

func (r *rig) stats(t testing.TB) Stats {
	t.Helper()
	s, err := r.proxy.Stats()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (r *rig) accepted(t testing.TB, server int) cookie.Stats {
	t.Helper()
	s, err := r.acceptors[server].Stats()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (r *rig) at(v6 bool) netip.AddrPort {
	if v6 {
		return netip.AddrPortFrom(r.vip6, port)
	}
	return netip.AddrPortFrom(r.vip4, port)
}

func all(port int) string { return ":" + strconv.Itoa(port) }

// Bits of tcp_info's options (include/uapi/linux/tcp.h).
const (
	optTimestamps = 1 << iota
	optSACK
	optScaling
	optECN
)

// negotiated returns the options that a socket works with.
func negotiated(t testing.TB, c *net.TCPConn) uint8 {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var info *unix.TCPInfo
	var failed error
	err = raw.Control(func(fd uintptr) { info, failed = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) })
	if err := errors.Join(err, failed); err != nil {
		t.Fatal(err)
	}
	return info.Options & 15
}
