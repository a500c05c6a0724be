// SPDX-License-Identifier: Apache-2.0

package netnslab_test

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	netnslab "github.com/rehome-net/rehome/netns-lab"
	"github.com/rehome-net/rehome/netns-lab/labtest"
)

func TestElementDelays(t *testing.T) {
	const rtt = 20 * time.Millisecond
	topo := netnslab.Standard(1)
	topo.Impairments = []netnslab.HostImpairment{{Host: "client", Up: netnslab.RTT(rtt), Down: netnslab.RTT(rtt)}}
	lab := labtest.New(t, topo)
	ctx := limited(t, 20*time.Second)
	client, a := labtest.Host(t, lab, "client"), labtest.Host(t, lab, "a")
	to := netip.AddrPortFrom(a.Addr4(), serveEcho(t, a, ":0"))
	c, err := client.Dial(ctx, "tcp", to.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	times, err := netnslab.PingPong{Rounds: 50}.Run(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	// The quickest is the element's own error; the rest is the machine's.
	if got := times.Quantile(0); got < rtt || got > rtt+2*time.Millisecond {
		t.Errorf("quickest round trip %v, want %v", got, rtt)
	}
	e, err := lab.Impair(t.Context(), "client", netnslab.Impairment{}, netnslab.Impairment{})
	if err != nil {
		t.Fatal(err)
	}
	after, err := netnslab.PingPong{Rounds: 50}.Run(ctx, c)
	if err == nil && after.Median() > rtt/2 {
		t.Errorf("median %v after the delay was taken away", after.Median())
	}
	up, down := e.Stats()
	if up.Delivered < 100 || down.Delivered < 100 || up.Failed+down.Failed > 0 {
		t.Errorf("up %+v, down %+v", up, down)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	before, _ := e.Stats()
	if _, err := (netnslab.PingPong{Rounds: 50}).Run(ctx, c); err != nil {
		t.Errorf("after the element was taken out: %v", err)
	}
	if err := e.Set(netnslab.Impairment{}, netnslab.Impairment{}); !errors.Is(err, netnslab.ErrClosed) {
		t.Errorf("set after close: %v", err)
	}
	late, _ := e.Stats()
	if late.Read != before.Read {
		t.Errorf("the element still reads after it was taken out: %d frames, then %d", before.Read, late.Read)
	}
	t.Logf("round trip: min %v median %v max %v; without delay: median %v; mean lateness up %v down %v",
		times.Quantile(0), times.Median(), times.Longest(), after.Median(), meanLate(up), meanLate(down))
}

func meanLate(s netnslab.Stats) time.Duration { return s.Late / time.Duration(max(s.Delivered, 1)) }

// stuff is the impairment under which 10,000 migrations are to go well.
func stuff() netnslab.Impairment {
	return netnslab.Impairment{
		Delay: time.Millisecond, Jitter: 5 * time.Millisecond, Loss: 0.01, Reorder: 0.01, Duplicate: 0.01, Seed: 7,
	}
}

func TestElementImpairsAndTCPSurvives(t *testing.T) {
	topo := netnslab.Standard(1)
	topo.Impairments = []netnslab.HostImpairment{{Host: "client", Up: stuff(), Down: stuff()}}
	lab := labtest.New(t, topo)
	ctx := limited(t, 60*time.Second)
	const size = 4 << 20
	upload(ctx, t, lab, size)
	e, err := lab.Impair(t.Context(), "client", stuff(), stuff())
	if err != nil {
		t.Fatal(err)
	}
	up, down := e.Stats()
	if up.Lost == 0 || up.Reordered == 0 || up.Duplicated == 0 {
		t.Errorf("nothing happened: %+v", up)
	}
	if down.Read != down.Delivered+down.Lost+down.Overflowed+down.Failed {
		t.Logf("frames still under way: %+v", down)
	}
	t.Logf("up %+v", up)
}

// upload sends size bytes of ramp from the client to server a, which checks them, and returns what the client's kernel says in the end.
func upload(ctx context.Context, t testing.TB, lab *netnslab.Lab, size int64) (netnslab.TCPInfo, time.Duration) {
	t.Helper()
	client, a := labtest.Host(t, lab, "client"), labtest.Host(t, lab, "a")
	l, err := a.Listen(ctx, "tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	received := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			received <- err
			return
		}
		defer c.Close()
		v := netnslab.NewRampVerifier(0)
		_, err = io.CopyBuffer(struct{ io.Writer }{v}, struct{ io.Reader }{c}, make([]byte, 256<<10))
		if err == nil && v.Pos() != size {
			err = io.ErrUnexpectedEOF
		}
		received <- err
	}()
	port := netip.MustParseAddrPort(l.Addr().String()).Port()
	begin := time.Now()
	c, err := client.Dial(ctx, "tcp", netip.AddrPortFrom(a.Addr4(), port).String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.Copy(struct{ io.Writer }{c}, netnslab.NewRamp(0, size)); err != nil {
		t.Fatal(err)
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-received:
		if err != nil {
			t.Fatal(err)
		}
	case <-ctx.Done():
		t.Fatal(ctx.Err())
	}
	elapsed := time.Since(begin)
	info, err := netnslab.ReadTCPInfo(c.(*net.TCPConn))
	if err != nil {
		t.Fatal(err)
	}
	return info, elapsed
}

func TestElementLimitsTheRate(t *testing.T) {
	const rate = 100e6
	slow := netnslab.Impairment{Rate: rate, Queue: 1 << 20}
	topo := netnslab.Standard(1)
	topo.Impairments = []netnslab.HostImpairment{{Host: "client", Up: slow, Down: slow}}
	lab := labtest.New(t, topo)
	const size = 8 << 20
	_, elapsed := upload(limited(t, 30*time.Second), t, lab, size)
	got := size * 8 / elapsed.Seconds()
	// The upper bound is the element's; the lower one leaves room for a machine that is busy with something else.
	if got < 0.2*rate || got > rate {
		t.Errorf("%.0f Mb/s of payload through %.0f Mb/s", got/1e6, rate/1e6)
	}
}

// A process that died with an element inserted leaves the host's port on a bridge that leads nowhere.
func TestElementReplacesWhatADeadProcessLeft(t *testing.T) {
	lab := labtest.New(t, netnslab.Standard(1))
	ctx := limited(t, 20*time.Second)
	sw, client, a := labtest.Host(t, lab, netnslab.SwitchName), labtest.Host(t, lab, "client"), labtest.Host(t, lab, "a")
	err := sw.Do(func() error {
		nl, err := netlink.NewHandle()
		if err != nil {
			return err
		}
		defer nl.Close()
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "i-client"
		bridge := &netlink.Bridge{LinkAttrs: attrs}
		if err := nl.LinkAdd(bridge); err != nil {
			return err
		}
		port, err := nl.LinkByName("p-client")
		if err != nil {
			return err
		}
		return nl.LinkSetMaster(port, bridge)
	})
	if err != nil {
		t.Fatal(err)
	}
	e, err := lab.Impair(ctx, "client", netnslab.Impairment{}, netnslab.Impairment{})
	if err != nil {
		t.Fatal(err)
	}
	to := netip.AddrPortFrom(a.Addr4(), serveEcho(t, a, ":0"))
	if _, err := ping(ctx, client, to); err != nil {
		t.Errorf("through the element: %v", err)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := ping(ctx, client, to); err != nil {
		t.Errorf("direct: %v", err)
	}
}

func TestASecondElementIsRefusedAndHarmsNothing(t *testing.T) {
	topo := netnslab.Standard(1)
	topo.Impairments = []netnslab.HostImpairment{{Host: "client"}}
	lab := labtest.New(t, topo)
	ctx := limited(t, 20*time.Second)
	other, err := netnslab.Reopen(lab.Topology().Name) // as another process would
	if err != nil {
		t.Fatal(err)
	}
	defer other.Release()
	if _, err := other.Impair(ctx, "client", netnslab.Impairment{}, netnslab.Impairment{}); !errors.Is(err, syscall.EBUSY) {
		t.Errorf("second element: %v", err)
	}
	a := labtest.Host(t, lab, "a")
	if _, err := ping(ctx, labtest.Host(t, lab, "client"), netip.AddrPortFrom(a.Addr4(), serveEcho(t, a, ":0"))); err != nil {
		t.Error(err)
	}
}

// A delay alone loses nothing, whatever the speed.
func TestElementWithDelayLosesNothing(t *testing.T) {
	topo := netnslab.Standard(1)
	topo.Impairments = []netnslab.HostImpairment{{
		Host: "client", Up: netnslab.RTT(20 * time.Millisecond), Down: netnslab.RTT(20 * time.Millisecond),
	}}
	lab := labtest.New(t, topo)
	const size = 128 << 20
	info, elapsed := upload(limited(t, 60*time.Second), t, lab, size)
	e, err := lab.Impair(t.Context(), "client", netnslab.Impairment{}, netnslab.Impairment{})
	if err != nil {
		t.Fatal(err)
	}
	up, down := e.Stats()
	if up.Overflowed+up.Failed+down.Overflowed+down.Failed > 0 {
		t.Errorf("up %+v, down %+v", up, down)
	}
	t.Logf("%.2f Gb/s, %d retransmitted, %d timeouts, mean lateness %v, latest %v",
		size*8/elapsed.Seconds()/1e9, info.Retransmitted, info.Timeouts, meanLate(up), up.Latest)
}

// BenchmarkElement measures what the element carries at most: one TCP stream of MTU-sized frames with ACKs the other way.
func BenchmarkElement(b *testing.B) {
	for _, bench := range []struct {
		name string
		im   netnslab.Impairment
	}{
		{"nothing", netnslab.Impairment{}},
		{"rtt=20ms", netnslab.RTT(20 * time.Millisecond)},
	} {
		b.Run(bench.name, func(b *testing.B) {
			topo := netnslab.Standard(1)
			topo.Impairments = []netnslab.HostImpairment{{Host: "client", Up: bench.im, Down: bench.im}}
			lab := labtest.New(b, topo)
			const chunk = 1 << 20
			b.SetBytes(chunk)
			noise := make([]byte, chunk)
			_, _ = rand.Read(noise)
			client, a := labtest.Host(b, lab, "client"), labtest.Host(b, lab, "a")
			l, err := a.Listen(b.Context(), "tcp", ":0")
			if err != nil {
				b.Fatal(err)
			}
			defer l.Close()
			done := make(chan error, 1)
			go func() {
				c, err := l.Accept()
				if err == nil {
					_, err = io.Copy(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{c})
					_ = c.Close()
				}
				done <- err
			}()
			port := netip.MustParseAddrPort(l.Addr().String()).Port()
			c, err := client.Dial(b.Context(), "tcp", netip.AddrPortFrom(a.Addr4(), port).String())
			if err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				if _, err := c.Write(noise); err != nil {
					b.Fatal(err)
				}
			}
			info, err := netnslab.ReadTCPInfo(c.(*net.TCPConn))
			if err != nil {
				b.Fatal(err)
			}
			if err := c.Close(); err != nil {
				b.Fatal(err)
			}
			if err := <-done; err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(info.Retransmitted)/float64(b.N), "retrans/MiB")
		})
	}
}
