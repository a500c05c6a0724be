// SPDX-License-Identifier: Apache-2.0

package realtime_test

import (
	"errors"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/handoff/realtime"
)

// result is what the thread of a goroutine has.
type result struct {
	priority realtime.Priority
	attr     *unix.SchedAttr
	err      error
}

// TestEnter holds that the thread has what Enter says, and that no other thread got it, also one that the runtime starts meanwhile.
func TestEnter(t *testing.T) {
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
		if r := <-results; r.attr.Policy != unix.SCHED_NORMAL || r.attr.Nice != 0 {
			t.Errorf("another thread has policy %d, nice %d", r.attr.Policy, r.attr.Nice)
		}
	}
}
