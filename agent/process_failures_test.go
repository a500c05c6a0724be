// SPDX-License-Identifier: Apache-2.0

package agent_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/agent"
	"github.com/rehome-net/rehome/agent/api"
	"github.com/rehome-net/rehome/netns-lab/labtest"
	"github.com/rehome-net/rehome/netns-lab/scenario"
)

// criuFiles are the programs that the hosts' agents take for CRIU.
type criuFiles struct {
	t         *testing.T
	dir, real string
}

func (c criuFiles) path(host string) string { return filepath.Join(c.dir, "criu-"+host) }

// set makes a host's CRIU the real one, if version is empty, or one that is of that version and fails.
func (c criuFiles) set(host, version string) {
	c.t.Helper()
	text := fmt.Sprintf("#!/bin/sh\nexec %s \"$@\"\n", c.real)
	if version != "" {
		self, err := os.Executable()
		if err != nil {
			c.t.Fatal(err)
		}
		text = fmt.Sprintf("#!/bin/sh\n%s=%s exec %s \"$@\"\n", fakeVersion, version, self)
	}
	if err := os.WriteFile(c.path(host), []byte(text), 0o755); err != nil {
		c.t.Fatal(err)
	}
}

// breakLate makes a host's CRIU one that fails when everything has been decided.
func (c criuFiles) breakLate(host string) {
	c.t.Helper()
	self, err := os.Executable()
	if err != nil {
		c.t.Fatal(err)
	}
	text := fmt.Sprintf("#!/bin/sh\n%s=%s exec %s \"$@\"\n", brokenCRIU, c.real, self)
	if err := os.WriteFile(c.path(host), []byte(text), 0o755); err != nil {
		c.t.Fatal(err)
	}
}

func (c criuFiles) remove(host string) {
	c.t.Helper()
	if err := os.Remove(c.path(host)); err != nil {
		c.t.Fatal(err)
	}
}

// TestProcessFailures lets every kind of failure happen to a move, with a connection that goes on after each of them. At the end the process
// moves: nothing was left in its way.
func TestProcessFailures(t *testing.T) {
	files := criuFiles{t: t, dir: t.TempDir(), real: requireCRIU(t)}
	files.set("a", "")
	files.set("b", "")
	private := t.TempDir()
	s := newSite(t, func(c *agent.Config) {
		c.Process.CRIU = files.path(c.Host)
		c.Process.ImageBytes = 100 << 20
	})
	// A file system of its own, which the target has not.
	s.serve("a", "unshare", "--mount", "sh", "-c", `mount -t tmpfs none "$0" && echo here > "$0/only" && exec python3 -c "$1"`, private, echoProgram)
	old := s.dial()
	tests := []struct {
		name    string
		arrange func()
		during  func(ctx context.Context) // beside the move; may be nil
		want    string
		undo    func()
	}{
		{"CRIU is missing at the source", func() { files.remove("a") }, nil, "no CRIU on this host", func() { files.set("a", "") }},
		{"CRIU is missing at the target", func() { files.remove("b") }, nil, "b refused: failed: no CRIU on this host", func() { files.set("b", "") }},
		{"CRIU is too old at the source", func() { files.set("a", "3.17.1") }, nil, "CRIU 3.17.1 found", func() { files.set("a", "") }},
		{"CRIU is too old at the target", func() { files.set("b", "4.1.1") }, nil, "CRIU 4.1.1 found", func() { files.set("b", "") }},
		{"CRIU fails at once", func() { files.set("a", "4.2.0") }, nil, "criu dump", func() { files.set("a", "") }},
		{"the restore fails", func() { files.set("b", "4.2.0") }, nil, "criu restore", func() { files.set("b", "") }},
		{
			"the dump fails", func() { old.say("run held = socket.socket(44, socket.SOCK_RAW)") }, nil,
			"criu dump", func() { old.say("run held.close()") },
		},
		{
			"a file is missing at the target", func() { old.say("run held = open(%q)", filepath.Join(private, "only")) }, nil,
			"only is not there", func() { old.say("run held.close()") },
		},
		{
			"no room for the image", func() { old.say("run memory = bytearray(os.urandom(120 << 20))") }, nil,
			"raise process.image_bytes", func() { old.say("run memory = 0") },
		},
		{
			"the room for the image ends", func() {
				old.say("run import tempfile; held = tempfile.TemporaryFile(dir='/dev/shm'); held.write(os.urandom(110 << 20)); held.flush()")
			}, nil,
			"no room for the image", func() { old.say("run held.close()") },
		},
		{
			"the target's agent dies during the transfer", func() { old.say("run memory = bytearray(os.urandom(60 << 20))") },
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
		{
			"the entry's agent dies during the transfer", func() {},
			func(ctx context.Context) {
				if s.awaitState(ctx, "a", "freezing") {
					_ = s.cluster.KillAgent("entry")
				}
				if err := s.cluster.StartAgent(t.Context(), "entry"); err != nil {
					t.Error(err)
				}
			},
			"lost the connection to the entry", func() {},
		},
		{
			"the operator gives up", func() {},
			func(ctx context.Context) {
				if s.awaitState(ctx, "a", "freezing") {
					if client, err := s.cluster.Client("a"); err == nil {
						_, _ = client.Abort(ctx, &api.AbortRequest{})
					}
				}
			},
			"aborted by the operator", func() { old.say("run memory = 0") },
		},
		{"the restore fails when the entry has decided", func() { files.breakLate("b") }, nil, "given back, as it did not run: criu restore", func() { files.set("b", "") }},
		{"the process is none", func() { s.pid, s.t = s.pid+1<<22, t }, nil, "no such process", func() { s.pid -= 1 << 22 }},
	}
	for _, test := range tests {
		t.Logf("%s", test.name)
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
			t.Errorf("%s: got %v, %q: %s; want %q", test.name, err, p.Outcome, p.Error, test.want)
			if p.Outcome == agent.OutcomeMoved {
				return
			}
		}
		old.say("after: %s", test.name)
		s.dial().say("new after: %s", test.name)
		test.undo()
		s.awaitEmpty("b")
	}
	s.move("a", "b")
	old.say("at last")
}

// awaitState waits until a process's move is in a state at a host's agent.
func (s *site) awaitState(ctx context.Context, host, state string) bool {
	for ctx.Err() == nil {
		st, err := s.cluster.Status(ctx, host)
		if err == nil {
			for _, m := range st.GetMigrations() {
				if m.GetState() == state {
					return true
				}
			}
		}
		time.Sleep(time.Millisecond)
	}
	return false
}

// awaitEmpty waits until nothing runs on a host but its agent.
func (s *site) awaitEmpty(host string) {
	s.t.Helper()
	await(s.t, "nothing but the agent on "+host, func() bool {
		out, err := exec.Command("ip", "netns", "pids", labtest.Host(s.t, s.cluster.Lab, host).Namespace()).Output()
		return err == nil && len(strings.Fields(string(out))) == 1
	})
}

// TestProcessOutlivesSource kills the agent of the source in the middle of a dump: the process goes on there.
func TestProcessOutlivesSource(t *testing.T) {
	s := newSite(t, nil)
	s.serve("a", "python3", "-c", strings.Replace(echoProgram, "8 << 20", "60 << 20", 1))
	old := s.dial()
	old.say("before")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	moved := make(chan struct{})
	cmd := exec.CommandContext(ctx, s.program, "migrate", "--agent", scenario.ControlSocket(s.cluster.Lab.Topology().Name, "a"),
		"--process", strconv.Itoa(s.pid), "--to", "b")
	go func() {
		defer close(moved)
		_ = cmd.Run() // it loses its agent
	}()
	if !s.awaitState(ctx, "a", "freezing") {
		t.Fatal("no move")
	}
	if err := s.cluster.KillAgent("a"); err != nil {
		t.Fatal(err)
	}
	<-moved
	old.say("after")
	s.awaitEmpty("b")
	if err := s.cluster.StartAgent(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	s.dial().say("new")
	s.move("a", "b")
	old.say("at last")
	_ = unix.Kill(s.pid, unix.SIGKILL)
}
