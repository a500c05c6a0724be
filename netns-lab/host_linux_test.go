// SPDX-License-Identifier: Apache-2.0

package netnslab_test

import (
	"context"
	"errors"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	netnslab "github.com/rehome-net/rehome/netns-lab"
	"github.com/rehome-net/rehome/netns-lab/labtest"
)

func TestDoRunsInsideAndComesBack(t *testing.T) {
	lab := labtest.New(t, netnslab.Standard(0))
	client := labtest.Host(t, lab, "client")
	home := ownNetwork(t)
	var inside string
	if err := client.Do(func() (err error) {
		inside, err = os.Readlink("/proc/thread-self/ns/net")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if inside == home {
		t.Error("ran outside")
	}
	want := errors.New("mine")
	if err := client.Do(func() error { return want }); !errors.Is(err, want) {
		t.Errorf("error %v", err)
	}
	// FailNow ends a goroutine like this: it must neither hang nor leave the thread inside.
	if err := client.Do(func() error { runtime.Goexit(); return nil }); err == nil {
		t.Error("no error from a function that did not return")
	}
	for range 100 {
		got := make(chan string)
		go func() { got <- ownNetwork(t) }()
		if n := <-got; n != home {
			t.Fatalf("a thread was left in %s", n)
		}
	}
}

func ownNetwork(t *testing.T) string {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	link, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		t.Error(err)
	}
	return link
}

func TestCommandRunsInside(t *testing.T) {
	lab := labtest.New(t, netnslab.Standard(0))
	client := labtest.Host(t, lab, "client")
	var want string
	if err := client.Do(func() (err error) {
		want, err = os.Readlink("/proc/thread-self/ns/net")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	ctx := limited(t, 10*time.Second)
	out, err := client.Command(ctx, "readlink", "/proc/self/ns/net").Output()
	if got := strings.TrimSpace(string(out)); err != nil || got != want {
		t.Errorf("in %q (%v), want %q", got, err, want)
	}
	out, err = client.Command(ctx, "sh", "-c", "echo out; echo err >&2; exit 3").CombinedOutput()
	if string(out) != "out\nerr\n" || err == nil || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("%q, %v", out, err)
	}
	if err := client.Command(ctx, "/no/such/program").Run(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no such program: %v", err)
	}
}

func TestCloseEndsProcesses(t *testing.T) {
	labtest.RequireRoot(t)
	topo := netnslab.Standard(0)
	topo.Name = labtest.Prefix() + "kill"
	lab, err := netnslab.Build(t.Context(), topo)
	if err != nil {
		t.Fatal(err)
	}
	client := labtest.Host(t, lab, "client")
	ctx := limited(t, 30*time.Second)
	gentle := client.Command(ctx, "sleep", "60")
	stubborn := client.Command(ctx, "sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done")
	ready, err := stubborn.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(gentle.Start(), stubborn.Start()); err != nil {
		t.Fatal(errors.Join(err, lab.Close()))
	}
	if _, err := ready.Read(make([]byte, 6)); err != nil {
		t.Error(err)
	}
	if err := lab.Close(); err != nil {
		t.Error(err)
	}
	for _, test := range []struct {
		cmd  *netnslab.Cmd
		want string
	}{{gentle, "terminated"}, {stubborn, "killed"}} {
		if err := test.cmd.Wait(); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%v: %v, want %s", test.cmd.Args, err, test.want)
		}
	}
	if err := lab.Close(); err != nil {
		t.Errorf("second close: %v", err)
	}
}

func TestSysctl(t *testing.T) {
	topo := netnslab.Standard(1)
	topo.Hosts[2].Sysctls = map[string]string{"net.ipv4.tcp_syncookies": "2"}
	lab := labtest.New(t, topo)
	a, client := labtest.Host(t, lab, "a"), labtest.Host(t, lab, "client")
	for _, test := range []struct {
		host      *netnslab.Host
		key, want string
	}{
		{a, "net.ipv4.tcp_syncookies", "2"},
		{client, "net.ipv4.tcp_syncookies", "1"},
		{a, "net.ipv4.conf.all.arp_ignore", "1"},
		{a, "net.ipv4.conf.all.arp_announce", "2"},
	} {
		if got, err := test.host.Sysctl(test.key); err != nil || got != test.want {
			t.Errorf("%s %s: %q, %v, want %q", test.host.Name(), test.key, got, err, test.want)
		}
	}
	if _, err := a.Sysctl("net.no_such"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no such key: %v", err)
	}
	for _, key := range []string{"kernel.panic", "net.ipv4/../../kernel/panic"} {
		if err := a.SetSysctl(key, "0"); err == nil {
			t.Errorf("set %s", key)
		}
	}
}

func TestDialAndListenWantLiterals(t *testing.T) {
	lab := labtest.New(t, netnslab.Standard(0))
	client := labtest.Host(t, lab, "client")
	if _, err := client.Dial(t.Context(), "tcp", "localhost:80"); err == nil {
		t.Error("dialled a name")
	}
	if _, err := client.Listen(t.Context(), "tcp", "localhost:0"); err == nil {
		t.Error("listened on a name")
	}
	if _, err := client.Dial(t.Context(), "tcp", "10.77.0.1"); err == nil {
		t.Error("dialled no port")
	}
	// Nobody has this address: only the context ends it.
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := client.Dial(ctx, "tcp", "10.77.0.99:80"); !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("dial of nobody: %v", err)
	}
	c, err := client.ListenPacket(t.Context(), "udp", "10.77.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, ok := c.(*net.UDPConn); !ok {
		t.Errorf("listened with a %T", c)
	}
}

func TestHostNotFound(t *testing.T) {
	lab := labtest.New(t, netnslab.Standard(0))
	if _, err := lab.Host("z"); !errors.Is(err, netnslab.ErrNotFound) {
		t.Errorf("host: %v", err)
	}
	for _, name := range []string{"z", netnslab.SwitchName} {
		if _, err := lab.Impair(t.Context(), name, netnslab.Impairment{}, netnslab.Impairment{}); !errors.Is(err, netnslab.ErrNotFound) {
			t.Errorf("impairment of %s: %v", name, err)
		}
	}
	if h := labtest.Host(t, lab, netnslab.SwitchName); h.Name() != netnslab.SwitchName {
		t.Errorf("switch is %q", h.Name())
	}
}
