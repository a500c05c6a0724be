// SPDX-License-Identifier: Apache-2.0

package report

import (
	"bytes"
	"context"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rehome-net/rehome/handoff/vitals"
)

// startProcess runs a process until the returned function is called.
func startProcess(t *testing.T, c Config) (p *Process, stop func()) {
	t.Helper()
	c.Host, c.Key = 7, key()
	p, err := NewProcess(c, []string{os.Args[0], serveArgument})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(stop)
	return p, stop
}

// child returns the process that runs the reporter.
func child(t *testing.T) int {
	t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		self := strconv.Itoa(os.Getpid())
		threads, _ := os.ReadDir("/proc/self/task")
		for _, thread := range threads {
			text, _ := os.ReadFile("/proc/" + self + "/task/" + thread.Name() + "/children")
			for pid := range strings.FieldsSeq(string(text)) {
				line, _ := os.ReadFile("/proc/" + pid + "/cmdline")
				if n, err := strconv.Atoi(pid); err == nil && bytes.Contains(line, []byte(serveArgument)) {
					return n
				}
			}
		}
	}
	t.Fatal("there is no process")
	return 0
}

// TestProcess: what is said before and during, a process that is killed, and the end.
func TestProcess(t *testing.T) {
	d := newDispatcher(t, "127.0.0.1:0")
	p, stop := startProcess(t, Config{Dispatchers: []netip.AddrPort{d.addr()}, Interval: 20 * time.Millisecond, LoadInterval: MinLoadInterval})
	d.until(vitals.Available)
	p.SetDown("web", true)
	d.until(vitals.ApplicationDown)
	p.SetLoad("web", 0.5)
	p.SetSessions(9)
	for v := d.vector(); v.Shares[vitals.Application] != vitals.ShareOf(0.5) || v.Sessions != 9; {
		v = d.vector()
	}
	// Another one takes its place, and says the same.
	last := d.beat()
	if err := syscall.Kill(child(t), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for h := last; h.Seq-last.Seq < 100; h = d.beat() { // it begins anywhere
		last = h
	}
	d.until(vitals.ApplicationDown)
	p.SetDown("web", false)
	d.until(vitals.Available)
	at := time.Now().Add(time.Hour).Truncate(time.Millisecond)
	p.Announce(at)
	if h := d.until(vitals.PlannedFailure); !vitals.TimeOf(h.Stamp, at).Equal(at) {
		t.Errorf("fails at %v, want %v", vitals.TimeOf(h.Stamp, at), at)
	}
	p.Retract()
	d.until(vitals.Available)
	for deadline := time.Now().Add(patience); p.Stats().Heartbeats == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("no statistics")
		}
	}
	// Who signals all processes of the group does not end it.
	if err := syscall.Kill(child(t), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	d.until(vitals.Available)
	stop()
	d.until(vitals.PlannedFailure)
}

func TestProcessRefuses(t *testing.T) {
	good := Config{Host: 7, Dispatchers: addresses("192.0.2.1:7072"), Key: key()}
	if _, err := NewProcess(good, nil); err == nil {
		t.Error("no command is taken")
	}
	if _, err := NewProcess(Config{}, []string{"true"}); err == nil {
		t.Error("no configuration is taken")
	}
}

// TestServeInput holds that what is no configuration, or no word, ends the program with an error, and nothing at all without one.
func TestServeInput(t *testing.T) {
	for _, text := range []string{"", "{", "nonsense", "{}", `{"Host":7}`, `[1]`} {
		if err := serve(strings.NewReader(text), &bytes.Buffer{}); err == nil {
			t.Errorf("%q is taken", text)
		}
	}
}
