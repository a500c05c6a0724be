// SPDX-License-Identifier: Apache-2.0

package criu

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/rehome-net/rehome/netns-lab/labtest"
)

func TestInspectRefuses(t *testing.T) {
	labtest.RequireRoot(t)
	for _, pid := range []int{-1, 0, 1, os.Getpid()} {
		if _, err := Inspect(pid); !errors.Is(err, ErrNotMovable) {
			t.Errorf("%d: got %v", pid, err)
		}
	}
	if _, err := Inspect(1 << 30); !errors.Is(err, ErrNoProcess) {
		t.Errorf("got %v", err)
	}
}

// shell starts a shell with a child, and with a listener that somebody has connected to; it returns its number and the listener's address.
func shell(t *testing.T, multipath bool) (int, netip.AddrPort) {
	t.Helper()
	labtest.RequireRoot(t)
	c := net.ListenConfig{}
	c.SetMultipathTCP(multipath)
	ln, err := c.Listen(context.Background(), "tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	client, err := net.Dial("tcp4", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	tcp, ok := ln.(*net.TCPListener)
	if !ok {
		t.Fatalf("%T", ln)
	}
	file, err := tcp.File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	cmd := exec.CommandContext(t.Context(), "sh", "-c", "sleep 60 & echo ready; wait")
	cmd.ExtraFiles, cmd.Dir = []*os.File{file}, "/"
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		tree, _ := Tree(cmd.Process.Pid)
		for _, pid := range tree {
			if p, err := os.FindProcess(pid); err == nil {
				_ = p.Kill()
			}
		}
		_ = cmd.Wait()
	})
	if _, err := out.Read(make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	return cmd.Process.Pid, netip.MustParseAddrPort(ln.Addr().String())
}

// TestInspectMultipath looks at a listener as Go makes it, which the kernel cannot freeze.
func TestInspectMultipath(t *testing.T) {
	pid, _ := shell(t, true)
	if _, err := Inspect(pid); !errors.Is(err, ErrNotMovable) || !strings.Contains(err.Error(), "Multipath TCP") {
		t.Errorf("got %v", err)
	}
}

// TestInspect looks at a tree that can be moved.
func TestInspect(t *testing.T) {
	pid, at := shell(t, false)
	p, err := Inspect(pid)
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Tree) != 2 || p.Tree[0] != p.PID || p.Inside != p.PID || !p.ShellJob {
		t.Errorf("got %+v", p)
	}
	if !slices.Equal(p.Listeners(), []netip.AddrPort{at}) {
		t.Errorf("listens at %v", p.Listeners())
	}
	if p.Waiting() != 1 {
		t.Errorf("%d connections wait", p.Waiting())
	}
	if err := CheckFiles(p.Files); err != nil {
		t.Error(err)
	}
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(p.Files, func(f File) bool { return f.Path == exe && f.Size > 0 }) {
		t.Errorf("%s is not among %v", exe, p.Files)
	}
	found, err := FindListener(func(a netip.AddrPort) bool { return a == at })
	if err != nil || found != p.PID {
		t.Errorf("found %d and %v, want %d", found, err, p.PID)
	}
}
