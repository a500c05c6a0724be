// SPDX-License-Identifier: Apache-2.0

//go:build linux

package sockops

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	netnslab "github.com/rehome-net/rehome/netns-lab"
	"github.com/rehome-net/rehome/netns-lab/labtest"
	"github.com/rehome-net/rehome/tcprepair"
)

// patience bounds every wait of the tests; quiet is how long nothing must happen for the test to believe that nothing does.
const (
	patience = 10 * time.Second
	quiet    = 100 * time.Millisecond
)

// TestEnds ends connections in every way, and says by which state the kernel closed them: this table stands in doc.go.
func TestEnds(t *testing.T) {
	f := newField(t, netnslab.Impairment{})
	for _, c := range []struct {
		name    string
		end     func(t *testing.T, p pair)
		from    tcprepair.State
		lingers bool
	}{
		{"the client closes first", func(t *testing.T, p pair) {
			_ = p.client.Close()
			drained(t, p.server)
			_ = p.server.Close()
		}, tcprepair.LastAck, false},
		{"the server closes first", func(t *testing.T, p pair) {
			_ = p.server.Close()
			drained(t, p.client)
			_ = p.client.Close()
		}, tcprepair.FinWait2, true},
		{"the server closes, the client never", func(t *testing.T, p pair) {
			_ = p.server.Close()
			drained(t, p.client)
		}, tcprepair.FinWait2, true},
		{"the server shuts down and waits", func(t *testing.T, p pair) {
			_ = p.server.CloseWrite()
			drained(t, p.client)
			_ = p.client.Close()
			drained(t, p.server)
		}, tcprepair.FinWait2, true},
		{"the client resets", func(_ *testing.T, p pair) { reset(p.client) }, tcprepair.Established, false},
		{"the server resets", func(_ *testing.T, p pair) { reset(p.server) }, tcprepair.Established, false},
		{"the client closes, the server resets", func(t *testing.T, p pair) {
			_ = p.client.CloseWrite()
			drained(t, p.server)
			reset(p.server)
		}, tcprepair.CloseWait, false},
		{"the server shuts down, the client resets", func(t *testing.T, p pair) {
			_ = p.server.CloseWrite()
			inState(t, p.server, tcprepair.FinWait2)
			reset(p.client)
		}, tcprepair.FinWait2, true},
		{"the server closes with data unread", func(t *testing.T, p pair) {
			if _, err := p.client.Write([]byte("unread")); err != nil {
				t.Fatal(err)
			}
			control(t, p.server, func(fd int) error {
				poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
				if n, err := unix.Poll(poll, int(patience.Milliseconds())); n != 1 {
					return fmt.Errorf("nothing to read: %w", err)
				}
				return nil
			})
			_ = p.server.Close()
		}, tcprepair.Established, false},
		{"disconnected", func(t *testing.T, p pair) {
			control(t, p.server, func(fd int) error { return disconnect(fd) })
		}, tcprepair.Established, false},
	} {
		for _, v := range []struct {
			name          string
			listen, watch netip.AddrPort
		}{
			{"IPv4", netip.AddrPortFrom(f.vip4, 80), netip.AddrPortFrom(f.vip4, 80)},
			{"IPv6", netip.AddrPortFrom(f.vip6, 80), netip.AddrPortFrom(f.vip6, 80)},
			{"IPv4 at an IPv6 socket", netip.AddrPortFrom(netip.IPv6Unspecified(), 80), netip.AddrPortFrom(f.vip4, 80)},
		} {
			t.Run(c.name+"/"+v.name, func(t *testing.T) {
				log := watch(t, f.a, v.watch)
				l := listen(t, f.a, v.listen)
				p := connectTo(t, f, l, v.watch)
				c.end(t, p)
				got := log.next(t)
				if d := cmp.Diff(End{Flow: p.flow, From: c.from}, got, cmpopts.EquateComparable(netip.AddrPort{})); d != "" {
					t.Errorf("end (-want +got):\n%s", d)
				}
				if got.Lingers() != c.lingers {
					t.Errorf("lingers: %v", got.Lingers())
				}
				log.none(t)
			})
		}
	}
}

func disconnect(fd int) error {
	var none unix.RawSockaddrAny // AF_UNSPEC
	return connectRaw(fd, &none)
}

// TestCrossingEnds lets both sides close while the other's FIN is on its way.
func TestCrossingEnds(t *testing.T) {
	f := newField(t, netnslab.Impairment{Delay: 20 * time.Millisecond})
	at := netip.AddrPortFrom(f.vip4, 80)
	log := watch(t, f.a, at)
	p := connectTo(t, f, listen(t, f.a, at), at)
	_, _ = p.client.Close(), p.server.Close()
	if e := log.next(t); e.From != tcprepair.Closing || !e.Lingers() || e.Flow != p.flow {
		t.Errorf("%+v", e)
	}
	log.none(t)
}

// TestKilledServer kills a process that has a connection.
func TestKilledServer(t *testing.T) {
	f := newField(t, netnslab.Impairment{})
	at := netip.AddrPortFrom(f.vip4, 80)
	log := watch(t, f.a, at)
	cmd := f.a.Command(t.Context(), "/proc/self/exe")
	cmd.Env = append(os.Environ(), serveAt+"="+at.String())
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	said := bufio.NewScanner(out)
	expect := func(word string) {
		t.Helper()
		if !said.Scan() || said.Text() != word {
			t.Fatalf("the server said %q, %v", said.Text(), said.Err())
		}
	}
	expect("listening")
	c, err := f.client.Dial(t.Context(), "tcp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	expect("accepted")
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	drained(t, c.(*net.TCPConn))
	if e := log.next(t); e.Flow != flowOf(c) || e.From != tcprepair.FinWait2 {
		t.Errorf("%+v", e)
	}
	log.none(t)
}

// TestOthers ends connections that are none of the watcher's: of another host, with the same addresses, and of another port.
func TestOthers(t *testing.T) {
	f := newField(t, netnslab.Impairment{})
	at, other := netip.AddrPortFrom(f.vip4, 80), netip.AddrPortFrom(f.vip4, 81)
	atA, atB := watch(t, f.a, at), watch(t, f.b, at)
	end := func(h *netnslab.Host, at netip.AddrPort) tcprepair.Flow {
		f.path(t, h)
		p := connectTo(t, f, listen(t, h, at), at)
		reset(p.client)
		return p.flow
	}
	_ = end(f.a, other)
	_ = end(f.b, other)
	onB, onA := end(f.b, at), end(f.a, at)
	if e := atA.next(t); e.Flow != onA {
		t.Errorf("a: %+v, want %v", e, onA)
	}
	if e := atB.next(t); e.Flow != onB {
		t.Errorf("b: %+v, want %v", e, onB)
	}
	atA.none(t)
	atB.none(t)
	// What a client of the same address as a service would be.
	back := listen(t, f.client, netip.AddrPortFrom(f.client.Addr4(), 90))
	c, err := f.a.Dial(t.Context(), "tcp", back.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	atA.none(t)
}

// TestSuccessor closes a watcher, as when an agent restarts: the next one sees the ends of the connections that the first saw begin.
func TestSuccessor(t *testing.T) {
	f := newField(t, netnslab.Impairment{})
	at := netip.AddrPortFrom(f.vip4, 80)
	l := listen(t, f.a, at)
	var first *Watcher
	if err := f.a.Do(func() (err error) {
		first, err = Watch(WatchConfig{Services: []netip.AddrPort{at}})
		return err
	}); err != nil {
		t.Skip(err)
	}
	p := connectTo(t, f, l, at)
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	log := watch(t, f.a, at)
	reset(p.client)
	if e := log.next(t); e.Flow != p.flow {
		t.Errorf("%+v", e)
	}
	log.none(t)
}

// TestManyEnds ends ten thousand connections as fast as it can: each is reported once.
func TestManyEnds(t *testing.T) {
	const n, workers = 10000, 8
	f := newField(t, netnslab.Impairment{})
	at := netip.AddrPortFrom(f.vip4, 80)
	log := watch(t, f.a, at)
	l := listen(t, f.a, at)
	go func() {
		for {
			c, err := l.AcceptTCP()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(io.Discard, c)
				_ = c.Close()
			}()
		}
	}()
	flows := make(chan tcprepair.Flow, n)
	failed := make(chan error, workers)
	for range workers {
		go func() {
			for range n / workers {
				c, err := f.client.Dial(t.Context(), "tcp", at.String())
				if err != nil {
					failed <- err
					return
				}
				flows <- flowOf(c)
				// With and without TIME_WAIT at the client, of which there may not be enough.
				if c.LocalAddr().(*net.TCPAddr).Port%2 == 0 {
					_ = c.(*net.TCPConn).SetLinger(0)
				}
				_ = c.Close()
			}
			failed <- nil
		}()
	}
	for range workers {
		if err := <-failed; err != nil {
			t.Fatal(err)
		}
	}
	close(flows)
	want := make(map[tcprepair.Flow]int)
	for fl := range flows {
		want[fl]++
	}
	for range n {
		e := log.next(t)
		if want[e.Flow]--; want[e.Flow] < 0 {
			t.Errorf("%v was reported too often", e.Flow)
		}
	}
	log.none(t)
}

// TestWatcherCloses closes a watcher while it is read: nothing of it is left, and a second time it is no harm.
func TestWatcherCloses(t *testing.T) {
	labtest.RequireRoot(t)
	w, err := Watch(WatchConfig{Services: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:80")}})
	if errors.Is(err, ErrNoCgroup) || errors.Is(err, ErrUnsupported) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	info, err := w.objects.RehomeEnded.Info()
	if err != nil {
		t.Fatal(err)
	}
	id, _ := info.ID()
	read := make(chan error, 1)
	go func() {
		_, err := w.Read(nil)
		read <- err
	}()
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	if err := <-read; !errors.Is(err, os.ErrClosed) {
		t.Errorf("Read: %v", err)
	}
	unloaded(t, id)
	_ = w.Close()
}

func TestWatchErrors(t *testing.T) {
	labtest.RequireRoot(t)
	at := netip.MustParseAddrPort("192.0.2.1:80")
	if _, err := Watch(WatchConfig{Services: []netip.AddrPort{at}, Cgroup: t.TempDir()}); err == nil {
		t.Error("a directory that is no cgroup is watched")
	}
	if _, err := Watch(WatchConfig{Cgroup: "/nowhere"}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("nothing: %v", err)
	}
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine
		none := make([]unix.CapUserData, 2)
		if err := unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &none[0]); err != nil {
			result <- err
			return
		}
		_, err := Watch(WatchConfig{Services: []netip.AddrPort{at}})
		result <- err
	}()
	if err := <-result; !errors.Is(err, ErrPermission) {
		t.Errorf("without capabilities: %v", err)
	}
}

// TestFullRing does not read while more connections end than there is room for: the rest is counted.
func TestFullRing(t *testing.T) {
	f := newField(t, netnslab.Impairment{})
	at := netip.AddrPortFrom(f.vip4, 80)
	l := listen(t, f.a, at)
	var w *Watcher
	err := f.a.Do(func() (err error) {
		w, err = Watch(WatchConfig{Services: []netip.AddrPort{at}})
		return err
	})
	if errors.Is(err, ErrNoCgroup) || errors.Is(err, ErrUnsupported) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	const most = 40000
	made := 0
	err = f.client.Do(func() error {
		for made < most && w.Lost() < 100 {
			for range 100 {
				if err := visit(at, l); err != nil {
					return err
				}
			}
			made += 100
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	lost := int(w.Lost())
	if lost == 0 {
		t.Fatalf("nothing lost of %d", made)
	}
	var ends []End
	for len(ends) < made-lost {
		if ends, err = w.Read(ends); err != nil {
			t.Fatal(err)
		}
	}
	// There is room again.
	if err := f.client.Do(func() error { return visit(at, l) }); err != nil {
		t.Fatal(err)
	}
	if ends, err = w.Read(ends[:0]); err != nil || len(ends) != 1 {
		t.Errorf("%d ends, %v", len(ends), err)
	}
	if n := int(w.Lost()); n != lost {
		t.Errorf("%d lost, %d before", n, lost)
	}
}
