// SPDX-License-Identifier: Apache-2.0

package monitor

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rehome-net/rehome/agent/report"
	"github.com/rehome-net/rehome/dispatcher/availability"
	"github.com/rehome-net/rehome/handoff/realtime"
	"github.com/rehome-net/rehome/handoff/vitals"
)

const (
	interval = 10 * time.Millisecond

	// roleVariable tells a copy of the test program what to be.
	roleVariable = "REHOME_TEST_ROLE"
	// quietVariable is for how long TestQuiet looks.
	quietVariable = "REHOME_QUIET"
)

// play is what a copy of the test program does instead of tests, and its exit status.
func play(role string) int {
	role, argument, _ := strings.Cut(role, " ")
	if role == "burn" {
		for n := uint64(1); n != 0; n++ { // for centuries; it is killed
		}
	}
	if err := serve(netip.MustParseAddrPort(argument)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// serve reports until SIGTERM.
func serve(to netip.AddrPort) error {
	if _, err := realtime.Process(); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	r, err := report.New(report.Config{Host: 7, Dispatchers: []netip.AddrPort{to}, Key: key(1), Interval: interval})
	if err != nil {
		return err
	}
	if err := r.Run(ctx); err != nil {
		return err
	}
	s := r.Stats()
	fmt.Printf("server: %d heartbeats, %d skipped, at most %v late\n", s.Heartbeats, s.Skipped, s.Late)
	return nil
}

// process is a copy of the test program in a role.
type process struct {
	cmd *exec.Cmd
	out *bufio.Scanner
}

func startProcess(tb testing.TB, role string) *process {
	tb.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), roleVariable+"="+role)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		tb.Fatal(err)
	}
	// Pdeathsig is about the thread that starts the process: it must live as long as the test.
	runtime.LockOSThread()
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	p := &process{cmd, bufio.NewScanner(out)}
	tb.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		runtime.UnlockOSThread()
	})
	return p
}

func (p *process) signal(tb testing.TB, s syscall.Signal) {
	tb.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		tb.Error(err)
	}
}

// ended stops a server, and returns what it has to say.
func (p *process) ended(tb testing.TB) string {
	tb.Helper()
	p.signal(tb, syscall.SIGTERM)
	for p.out.Scan() {
		if strings.HasPrefix(p.out.Text(), "server:") {
			return p.out.Text()
		}
	}
	tb.Fatal("the server says nothing")
	return ""
}

// change is what the monitor told, and when.
type change struct {
	availability.Event
	told time.Time
}

// watch runs a monitor of host 7 beside a server that another process is, and as many processes as there are processors that burn.
func watch(tb testing.TB) (*Monitor, *process, <-chan change) {
	tb.Helper()
	requireRealtime(tb)
	changes := make(chan change, 1000)
	m, err := Open(Config{
		Listen: "127.0.0.1:0", Keys: []vitals.Key{key(1)}, Availability: availability.Config{Interval: interval},
		Changed: func(e availability.Event) { changes <- change{e, time.Now()} },
	})
	if err != nil {
		tb.Fatal(err)
	}
	m.SetHosts([]uint32{7})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- m.Run(ctx) }()
	tb.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			tb.Error(err)
		}
		if err := m.Close(); err != nil {
			tb.Error(err)
		}
	})
	for range runtime.NumCPU() {
		startProcess(tb, "burn")
	}
	p := startProcess(tb, "server "+m.Addr().String())
	awaitChange(tb, changes, availability.Up)
	return m, p, changes
}

// requireRealtime skips the test where heartbeats cannot be sent in time.
func requireRealtime(tb testing.TB) {
	tb.Helper()
	granted := make(chan realtime.Priority)
	go func() {
		p, _ := realtime.Enter()
		granted <- p
	}()
	if p := <-granted; p != realtime.FIFO {
		tb.Skipf("needs CAP_SYS_NICE for real-time priority; got %v", p)
	}
}

// awaitChange returns the next change to a state.
func awaitChange(tb testing.TB, changes <-chan change, to availability.State) change {
	tb.Helper()
	late := time.After(patience)
	for {
		select {
		case c := <-changes:
			if c.To == to {
				return c
			}
		case <-late:
			tb.Fatalf("host 7 is not %v after %v", to, patience)
		}
	}
}

// crash stops the server dead at any moment of its interval, and returns how long it took the monitor to tell. Then it lives again.
func crash(tb testing.TB, p *process, changes <-chan change) time.Duration {
	tb.Helper()
	time.Sleep(time.Duration(rand.Int64N(int64(interval)))) // the phase is what is random here
	died := make(chan time.Time)
	go func() {
		// Else other processes may have the processor between the look at the clock and the signal.
		_, _ = realtime.Enter()
		at := time.Now()
		p.signal(tb, syscall.SIGSTOP)
		died <- at
	}()
	at := <-died
	c := awaitChange(tb, changes, availability.Down)
	p.signal(tb, syscall.SIGCONT)
	awaitChange(tb, changes, availability.Up)
	return c.told.Sub(at)
}

func quantile(sorted []time.Duration, q float64) time.Duration {
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}

// TestDetection: a server that stops dead is noticed after 20 ms (its last heartbeat was almost d old) to 30 ms, with all processors busy. The
// bounds leave room for a machine that does other things; BenchmarkDetection measures.
func TestDetection(t *testing.T) {
	if testing.Short() {
		t.Skip("keeps all processors busy")
	}
	_, p, changes := watch(t)
	var took []time.Duration
	for range 20 {
		took = append(took, crash(t, p, changes))
	}
	slices.Sort(took)
	t.Logf("noticed after %v to %v, median %v", took[0], took[len(took)-1], quantile(took, 0.5))
	if took[0] < 2*interval-time.Millisecond {
		t.Errorf("noticed after %v: before n*d of silence", took[0])
	}
	if m := quantile(took, 0.5); m > 50*time.Millisecond {
		t.Errorf("the median is %v", m)
	}
}

// TestQuiet: with all processors busy, nobody who lives is taken for dead. REHOME_QUIET=10m looks longer.
func TestQuiet(t *testing.T) {
	if testing.Short() {
		t.Skip("keeps all processors busy")
	}
	lasts := 5 * time.Second
	if text := os.Getenv(quietVariable); text != "" {
		var err error
		if lasts, err = time.ParseDuration(text); err != nil {
			t.Fatal(err)
		}
	}
	m, p, changes := watch(t)
	before := m.Stats()
	select {
	case c := <-changes:
		t.Errorf("host 7 became %v: %s", c.To, c.Cause)
	case <-time.After(lasts):
	}
	s := m.Stats()
	h, _ := m.Host(7)
	t.Logf("monitor: %d heartbeats, %d lost, at most %v late, blind %d times for %v", s.Heartbeats, h.Status.Lost, s.Late, s.Blind-before.Blind, s.BlindTime-before.BlindTime)
	t.Log(p.ended(t))
	if want := uint64(lasts/interval) / 2; s.Heartbeats < want {
		t.Errorf("%d heartbeats in %v, want %d at least", s.Heartbeats, lasts, want)
	}
}

// BenchmarkDetection measures how long a server has been dead when the monitor tells; d = 10 ms, n = 3, all processors busy.
func BenchmarkDetection(b *testing.B) {
	m, p, changes := watch(b)
	var took []time.Duration
	b.ResetTimer()
	for range b.N {
		took = append(took, crash(b, p, changes))
	}
	b.StopTimer()
	slices.Sort(took)
	for name, q := range map[string]float64{"p50-ms": 0.5, "p99-ms": 0.99, "max-ms": 1} {
		b.ReportMetric(quantile(took, q).Seconds()*1000, name)
	}
	b.ReportMetric(float64(m.Stats().Blind), "blind")
	b.ReportMetric(0, "ns/op")
}
