// SPDX-License-Identifier: Apache-2.0

package agent_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/agent"
	"github.com/rehome-net/rehome/agent/criu"
	"github.com/rehome-net/rehome/netns-lab/scenario"
)

// requireLazy skips where memory cannot follow a process.
func requireLazy(t *testing.T) {
	t.Helper()
	if err := criu.CanFollow(requireCRIU(t)); err != nil {
		t.Skip(err)
	}
}

// lazyEcho is a server with a good deal of memory.
func lazyEcho(megabytes int) string {
	return strings.Replace(echoProgram, "8 << 20", strconv.Itoa(megabytes)+" << 20", 1)
}

// TestProcessLazy moves a server there and back whose memory follows.
func TestProcessLazy(t *testing.T) {
	requireLazy(t)
	s := newSite(t, nil)
	s.serve("a", "python3", "-c", lazyEcho(60))
	old := s.dial()
	old.say("run import hashlib; before = hashlib.sha256(memory).digest()")
	at := "a"
	for _, to := range []string{"b", "a"} {
		m, err := s.migrate(at, "--process", strconv.Itoa(s.pid), "--to", to, "--lazy")
		if err != nil || m.Moved != 1 {
			t.Fatalf("%v: %+v", err, m)
		}
		p := m.Processes[0]
		t.Logf("frozen %v, in all %v, %d bytes in the image, %d after it", time.Duration(p.FreezeMicros)*time.Microsecond,
			time.Duration(p.TotalMicros)*time.Microsecond, p.ImageBytes, p.LazyBytes)
		if p.LazyBytes < 60<<20 || p.ImageBytes > 30<<20 {
			t.Errorf("%d bytes of memory followed, and %d came before", p.LazyBytes, p.ImageBytes)
		}
		s.pid, at = p.NewPID, to
		old.say("run assert hashlib.sha256(memory).digest() == before")
		old.say("run os.write(ask, b'?'); assert os.read(answer, 9) == b'!?'")
		s.dial().say("new at %s", to)
	}
	// What has come in this way leaves in the ordinary one.
	s.move("a", "b")
	old.say("run assert hashlib.sha256(memory).digest() == before")
}

// TestProcessLazyLosesSource ends the source's agent while memory is missing: the process is lost, and its client hears so at once.
func TestProcessLazyLosesSource(t *testing.T) {
	requireLazy(t)
	s := newSite(t, nil)
	s.serve("a", "python3", "-c", lazyEcho(200))
	old := s.dial()
	old.say("before")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	moved := make(chan struct{})
	cmd := exec.CommandContext(ctx, s.program, "migrate", "--agent", scenario.ControlSocket(s.cluster.Lab.Topology().Name, "a"),
		"--process", strconv.Itoa(s.pid), "--to", "b", "--lazy")
	go func() {
		defer close(moved)
		_ = cmd.Run() // it loses its agent
	}()
	if !s.awaitState(ctx, "b", "live") {
		t.Fatal("no move")
	}
	if err := s.cluster.KillAgent("a"); err != nil {
		t.Fatal(err)
	}
	<-moved
	began := time.Now()
	_ = old.conn.SetDeadline(time.Now().Add(10 * time.Second))
	var err error
	for err == nil {
		if _, err = old.conn.Write([]byte("after\n")); err == nil {
			_, err = old.reader.ReadString('\n')
		}
	}
	if !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, unix.EPIPE) || errors.Is(err, io.EOF) {
		t.Errorf("after %v the client heard %v, not of a reset", time.Since(began), err)
	}
	s.awaitEmpty("b")
	// CRIU has let the original go on, without connections: the next agent ends it, as it is the target's.
	if _, err := os.Stat(fmt.Sprintf("/proc/%d", s.pid)); err != nil {
		t.Errorf("the original is gone, although nobody has ended it: %v", err)
	}
	if err := s.cluster.StartAgent(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	s.awaitEmpty("a")
}

// TestProcessLazyFails lets a move fail before the commit: the process goes on at the source.
func TestProcessLazyFails(t *testing.T) {
	requireLazy(t)
	files := criuFiles{t: t, dir: t.TempDir(), real: requireCRIU(t)}
	files.set("a", "")
	files.set("b", "")
	s := newSite(t, func(c *agent.Config) {
		c.Process.CRIU = files.path(c.Host)
		c.Process.Lazy = true // instead of --lazy
	})
	s.serve("a", "python3", "-c", lazyEcho(40))
	old := s.dial()
	for _, test := range []struct {
		name    string
		arrange func()
		during  func(ctx context.Context)
		want    string
		undo    func()
	}{
		{"no userfaultfd, as this CRIU says", func() { files.set("b", "4.2.0") }, nil, "memory cannot follow a process here", func() { files.set("b", "") }},
		{"the restore fails when the entry has decided", func() { files.breakLate("b") }, nil, "given back, as it did not run: criu restore", func() { files.set("b", "") }},
		{
			"the target's agent dies during the dump", func() {},
			func(ctx context.Context) {
				if s.awaitState(ctx, "a", "freezing") {
					_ = s.cluster.KillAgent("b")
				}
			},
			"lost the connection to the other agent",
			func() {
				if err := s.cluster.StartAgent(t.Context(), "b"); err != nil {
					t.Fatal(err)
				}
			},
		},
	} {
		test.arrange()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		beside := make(chan struct{})
		go func() {
			defer close(beside)
			if test.during != nil {
				test.during(ctx)
			}
		}()
		m, err := s.migrate("a", "--process", strconv.Itoa(s.pid), "--to", "b")
		cancel()
		<-beside
		if p := m.Processes[0]; err == nil || p.Outcome != agent.OutcomeResumed || !strings.Contains(p.Error, test.want) {
			t.Fatalf("%s: got %v, %q: %s; want %q", test.name, err, p.Outcome, p.Error, test.want)
		}
		old.say("after: %s", test.name)
		test.undo()
		s.awaitEmpty("b")
	}
	if m := s.move("a", "b"); m.Processes[0].LazyBytes < 40<<20 {
		t.Errorf("only %d bytes followed", m.Processes[0].LazyBytes)
	}
	old.say("at last")
}
