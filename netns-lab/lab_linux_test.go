// SPDX-License-Identifier: Apache-2.0

package netnslab_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	netnslab "github.com/rehome-net/rehome/netns-lab"
	"github.com/rehome-net/rehome/netns-lab/labtest"
)

// limited bounds one test.
func limited(t testing.TB, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// serveEcho echoes on a host's address until the test ends, and returns the port. It ends before the lab does: the last packets of a connection may be lost with the
// lab, and an end that waits for them would wait for ever.
func serveEcho(t testing.TB, h *netnslab.Host, address string) uint16 {
	t.Helper()
	l, err := h.Listen(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	ending := make(chan struct{})
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return // closed by the cleanup
			}
			serving.Go(func() {
				done := make(chan struct{})
				go func() {
					defer close(done)
					_ = netnslab.Echo(c) // the client checks what it gets
				}()
				select {
				case <-done:
				case <-ending:
				}
				_ = c.Close()
				<-done
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		close(ending)
		serving.Wait()
	})
	return netip.MustParseAddrPort(l.Addr().String()).Port()
}

// ping checks one connection to an echo server.
func ping(ctx context.Context, from *netnslab.Host, to netip.AddrPort) (time.Duration, error) {
	c, err := from.Dial(ctx, "tcp", to.String())
	if err != nil {
		return 0, err
	}
	defer c.Close()
	times, err := netnslab.PingPong{Rounds: 3}.Run(ctx, c)
	return times.Median(), err
}

func TestStandardLabConnectsEverybodyAtOnce(t *testing.T) {
	lab := labtest.New(t, netnslab.Standard(3))
	ctx := limited(t, 20*time.Second)
	begin := time.Now()
	for _, to := range lab.Hosts() {
		port := serveEcho(t, to, ":0")
		for _, from := range lab.Hosts() {
			for _, addr := range []netip.Addr{to.Addr4(), to.Addr6()} {
				if _, err := ping(ctx, from, netip.AddrPortFrom(addr, port)); err != nil {
					t.Errorf("%s to %s %s: %v", from.Name(), to.Name(), addr, err)
				}
			}
		}
	}
	// A lost first packet (an address still tentative, a port not forwarding) costs a second.
	if d := time.Since(begin); d > 900*time.Millisecond {
		t.Errorf("first contact of all pairs took %v: something was not ready", d)
	}
}

func TestOnlyTheEntryAnswersForVirtualAddresses(t *testing.T) {
	topo := netnslab.Standard(2)
	lab := labtest.New(t, topo)
	ctx := limited(t, 20*time.Second)
	client, entry := labtest.Host(t, lab, "client"), labtest.Host(t, lab, "entry")
	link, err := entry.Link()
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range lab.Hosts()[1:] {
		for _, vip := range topo.VIPs {
			// Every holder can listen on it.
			l, err := h.Listen(ctx, "tcp", netip.AddrPortFrom(vip, 7000).String())
			if err != nil {
				t.Fatalf("%s on %s: %v", vip, h.Name(), err)
			}
			defer l.Close()
		}
	}
	for _, vip := range topo.VIPs {
		c, err := client.Dial(ctx, "tcp", netip.AddrPortFrom(vip, 7000).String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		neighbors, err := client.Neighbors()
		if err != nil {
			t.Fatal(err)
		}
		found := false
		for _, n := range neighbors {
			if n.Addr == vip {
				found = true
				if n.MAC.String() != link.MAC.String() {
					t.Errorf("client reaches %s at %s, entry is %s", vip, n.MAC, link.MAC)
				}
			}
		}
		if !found {
			t.Errorf("client knows no neighbour %s: %v", vip, neighbors)
		}
	}
}

// The kernel would take the entry's virtual IPv6 address as the source: it shares the longest prefix with itself.
func TestOwnConnectionsHaveOwnSource(t *testing.T) {
	lab := labtest.New(t, netnslab.Standard(1))
	ctx := limited(t, 10*time.Second)
	client := labtest.Host(t, lab, "client")
	port := serveEcho(t, client, ":0")
	for _, name := range []string{"entry", "a"} {
		h := labtest.Host(t, lab, name)
		for _, addr := range []netip.Addr{client.Addr4(), client.Addr6()} {
			c, err := h.Dial(ctx, "tcp", netip.AddrPortFrom(addr, port).String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			got := netip.MustParseAddrPort(c.LocalAddr().String()).Addr()
			if got != h.Addr4() && got != h.Addr6() {
				t.Errorf("%s to %s: source %s, want %s or %s", name, addr, got, h.Addr4(), h.Addr6())
			}
		}
	}
}

// A client that has a static neighbour reaches a server by the virtual address, and the answer comes straight back.
func TestServersServeVirtualAddresses(t *testing.T) {
	topo := netnslab.Standard(1)
	lab := labtest.New(t, topo)
	ctx := limited(t, 10*time.Second)
	client, a := labtest.Host(t, lab, "client"), labtest.Host(t, lab, "a")
	link, err := a.Link()
	if err != nil {
		t.Fatal(err)
	}
	port := serveEcho(t, a, ":0")
	for _, vip := range topo.VIPs {
		if err := client.SetNeighbor(vip, link.MAC); err != nil {
			t.Fatal(err)
		}
		if _, err := ping(ctx, client, netip.AddrPortFrom(vip, port)); err != nil {
			t.Errorf("%s: %v", vip, err)
		}
	}
	after, err := a.Link()
	if err != nil {
		t.Fatal(err)
	}
	if after.Received.Packets <= link.Received.Packets || after.Sent.Bytes <= link.Sent.Bytes {
		t.Errorf("counters did not move: %+v, then %+v", link, after)
	}
	// What a host sends the switch receives. More may have been sent between the two.
	at, err := a.Port()
	if err != nil {
		t.Fatal(err)
	}
	if at.Received.Bytes < after.Sent.Bytes || at.Sent.Bytes < after.Received.Bytes {
		t.Errorf("the host's end %+v, the switch's %+v", after, at)
	}
}

func TestBuildUndoesAFailure(t *testing.T) {
	labtest.RequireRoot(t)
	topo := netnslab.Standard(2)
	topo.Name = labtest.Prefix() + "fail"
	topo.Hosts[3].Sysctls = map[string]string{"net.ipv4.no_such_thing": "1"}
	lab, err := netnslab.Build(t.Context(), topo)
	if err == nil {
		_ = lab.Close()
		t.Fatal("built a lab with an impossible sysctl")
	}
	var op *netnslab.OpError
	if !errors.As(err, &op) || !strings.Contains(err.Error(), "no_such_thing") {
		t.Errorf("error %q does not name the sysctl", err)
	}
	assertGone(t, topo.Name)
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	topo.Hosts[3].Sysctls = nil
	if _, err := netnslab.Build(cancelled, topo); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	assertGone(t, topo.Name)
}

func assertGone(t *testing.T, lab string) {
	t.Helper()
	left, err := filepath.Glob("/run/netns/rh-" + lab + "-*")
	if err != nil || len(left) > 0 {
		t.Errorf("left namespaces %v (%v)", left, err)
	}
	if _, err := os.Stat("/run/rehome-lab/" + lab + ".json"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("left state: %v", err)
	}
	if err := netnslab.Down(lab); !errors.Is(err, netnslab.ErrNotFound) {
		t.Errorf("down of nothing: %v", err)
	}
}

func TestReleaseReopenDown(t *testing.T) {
	labtest.RequireRoot(t)
	topo := netnslab.Standard(1)
	topo.Name = labtest.Prefix() + "up"
	lab, err := netnslab.Build(t.Context(), topo)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = netnslab.Down(topo.Name) }) // only if the test fails before it does so
	if _, err := netnslab.Build(t.Context(), topo); !errors.Is(err, netnslab.ErrExists) {
		t.Fatalf("second of the same name: %v", err)
	}
	a := labtest.Host(t, lab, "a")
	sleep := a.Command(t.Context(), "sleep", "60")
	if err := sleep.Start(); err != nil {
		t.Fatal(err)
	}
	stranger := exec.Command("sleep", "60") // in the host, and not on record
	if err := a.Do(stranger.Start); err != nil {
		t.Fatal(err)
	}
	if err := lab.Release(); err != nil {
		t.Fatal(err)
	}
	if err := lab.Close(); err != nil { // does nothing after Release
		t.Fatal(err)
	}
	names, err := netnslab.List()
	if err != nil || !contains(names, topo.Name) {
		t.Errorf("list: %v, %v", names, err)
	}

	again, err := netnslab.Reopen(topo.Name)
	if err != nil {
		t.Fatal(err)
	}
	out, err := labtest.Host(t, again, "client").Command(t.Context(), "cat", "/proc/net/if_inet6").Output()
	if err != nil || !strings.Contains(string(out), "fd770000000000000000000000000001") {
		t.Errorf("client's addresses: %q, %v", out, err)
	}
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
	if err := sleep.Wait(); err == nil || sleep.ProcessState.ExitCode() != -1 {
		t.Errorf("the server's process ended with %v, want a signal", err)
	}
	if err := stranger.Wait(); err == nil || stranger.ProcessState.ExitCode() != -1 {
		t.Errorf("the process that was not on record ended with %v, want a signal", err)
	}
	assertGone(t, topo.Name)
	if _, err := netnslab.Reopen(topo.Name); !errors.Is(err, netnslab.ErrNotFound) {
		t.Errorf("reopen of nothing: %v", err)
	}
}

func contains(names []string, name string) bool {
	for _, n := range names {
		if n == name {
			return true
		}
	}
	return false
}

func TestDownWorksWithoutState(t *testing.T) {
	labtest.RequireRoot(t)
	topo := netnslab.Standard(1)
	topo.Name = labtest.Prefix() + "lost"
	lab, err := netnslab.Build(t.Context(), topo)
	if err != nil {
		t.Fatal(err)
	}
	if err := lab.Release(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove("/run/rehome-lab/" + topo.Name + ".json"); err != nil {
		t.Fatal(err)
	}
	if _, err := netnslab.Build(t.Context(), topo); !errors.Is(err, netnslab.ErrExists) {
		t.Errorf("built over what is left: %v", err)
	}
	if left, err := filepath.Glob("/run/netns/rh-" + topo.Name + "-*"); err != nil || len(left) != len(topo.Hosts)+1 {
		t.Errorf("the refusal took namespaces away: %v, %v", left, err)
	}
	if err := netnslab.Down(topo.Name); err != nil {
		t.Fatal(err)
	}
	assertGone(t, topo.Name)
}

// TestRemains: somebody removed the namespaces, and nobody the record.
func TestRemains(t *testing.T) {
	labtest.RequireRoot(t)
	topo := netnslab.Standard(1)
	topo.Name = labtest.Prefix() + "remains"
	lab, err := netnslab.Build(t.Context(), topo)
	if err != nil {
		t.Fatal(err)
	}
	if names, err := netnslab.Remains(); err != nil || contains(names, topo.Name) {
		t.Errorf("a lab that stands is among what is left of others: %v, %v", names, err)
	}
	if err := lab.Release(); err != nil {
		t.Fatal(err)
	}
	names, err := filepath.Glob("/run/netns/rh-" + topo.Name + "-*")
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		if err := errors.Join(unix.Unmount(n, unix.MNT_DETACH), os.Remove(n)); err != nil {
			t.Fatal(err)
		}
	}
	if names, err := netnslab.List(); err != nil || contains(names, topo.Name) {
		t.Errorf("it stands without a namespace: %v, %v", names, err)
	}
	if names, err := netnslab.Remains(); err != nil || !contains(names, topo.Name) {
		t.Errorf("it is not among the remains: %v, %v", names, err)
	}
	if _, err := netnslab.Reopen(topo.Name); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("reopened: %v", err)
	}
	if err := netnslab.Down(topo.Name); err != nil {
		t.Error(err)
	}
	if names, err := netnslab.Remains(); err != nil || contains(names, topo.Name) {
		t.Errorf("its record is still there: %v, %v", names, err)
	}
}

func TestLargeTransferIsExact(t *testing.T) {
	lab := labtest.New(t, netnslab.Standard(1))
	ctx := limited(t, 30*time.Second)
	a := labtest.Host(t, lab, "a")
	l, err := a.Listen(ctx, "tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	file := netnslab.Noise{Seed: 1, Size: 64 << 20}
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		_, _ = io.Copy(c, file.Reader()) // a short transfer fails the client
	}()
	port := netip.MustParseAddrPort(l.Addr().String()).Port()
	c, err := labtest.Host(t, lab, "client").Dial(ctx, "tcp", netip.AddrPortFrom(a.Addr4(), port).String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	d, err := netnslab.Stream(ctx, c, file.Size)
	if err != nil {
		t.Fatal(err)
	}
	want, err := file.SHA256()
	if err != nil {
		t.Fatal(err)
	}
	if d.SHA256 != want {
		t.Errorf("sum differs after %d bytes", d.Bytes)
	}
	if d.LongestGap <= 0 || d.LongestGap > d.Elapsed || d.Rate() <= 0 {
		t.Errorf("implausible: %+v", d)
	}
	info, err := netnslab.ReadTCPInfo(c.(*net.TCPConn))
	if err != nil {
		t.Fatal(err)
	}
	if info.BytesReceived < uint64(file.Size) || info.RTO == 0 || info.MSS == 0 {
		t.Errorf("implausible: %+v", info)
	}
	t.Logf("%.1f Gb/s, longest gap %v", d.Rate()/1e9, d.LongestGap)
}
