// SPDX-License-Identifier: Apache-2.0

package realtime_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/handoff/realtime"
)

// TestMain is also the program of the process that TestProcess starts.
func TestMain(m *testing.M) {
	if os.Getenv(roleVariable) == "" {
		os.Exit(m.Run())
	}
	priority, err := realtime.Process()
	// Threads that come now inherit it.
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			runtime.LockOSThread()
			time.Sleep(10 * time.Millisecond)
		})
	}
	threads, _ := os.ReadDir("/proc/self/task")
	for _, t := range threads {
		tid, _ := strconv.Atoi(t.Name())
		if attr, err := unix.SchedGetAttr(tid, 0); err == nil {
			fmt.Println("policy", attr.Policy, "nice", attr.Nice)
		}
	}
	wg.Wait()
	fmt.Println(priority, err)
}

const roleVariable = "REHOME_TEST_ROLE"

// TestProcess holds that every thread of a process has what Process says.
func TestProcess(t *testing.T) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), roleVariable+"=process")
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	last, threads := lines[len(lines)-1], lines[:len(lines)-1]
	want := map[string]string{"fifo": "policy 1 nice 0", "nice": "policy 0 nice -20", "ordinary": "policy 0 nice"}[strings.Fields(last)[0]]
	t.Logf("%s, %d threads", last, len(threads))
	if want == "" || len(threads) < 2 {
		t.Errorf("%q", out)
	}
	for _, line := range threads {
		if !strings.HasPrefix(line, want) {
			t.Errorf("a thread has %q, want %q", line, want)
		}
	}
}

// result is what the thread of a goroutine has.
type result struct {
	priority realtime.Priority
	attr     *unix.SchedAttr
	err      error
}

// TestEnter holds that the thread has what Enter says, and that no other thread got it, also one that the runtime starts meanwhile.
func TestEnter(t *testing.T) {
	before, err := unix.SchedGetAttr(0, 0)
	if err != nil {
		t.Fatal(err)
	}
	results, leave := make(chan result), make(chan struct{})
	look := func(enter bool) {
		var r result
		if enter {
			r.priority, r.err = realtime.Enter()
		} else {
			runtime.LockOSThread() // not the one that has entered
		}
		r.attr, _ = unix.SchedGetAttr(0, 0)
		results <- r
		<-leave
	}
	defer close(leave)
	go look(true)
	r := <-results
	switch r.priority {
	case realtime.FIFO:
		if r.attr.Policy != unix.SCHED_FIFO || r.err != nil {
			t.Errorf("policy %d, error %v", r.attr.Policy, r.err)
		}
	case realtime.Nice:
		if r.attr.Nice >= 0 || r.err == nil {
			t.Errorf("nice %d, error %v", r.attr.Nice, r.err)
		}
	default:
		if !errors.Is(r.err, unix.EPERM) {
			t.Errorf("error %v", r.err)
		}
	}
	t.Logf("granted: %v", r.priority)
	for range 8 {
		go look(false)
		if r := <-results; r.attr.Policy != before.Policy || r.attr.Nice != before.Nice {
			t.Errorf("another thread has policy %d, nice %d", r.attr.Policy, r.attr.Nice)
		}
	}
}
