// SPDX-License-Identifier: Apache-2.0

package cookie

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"golang.org/x/sys/unix"

	netnslab "github.com/rehome-net/rehome/netns-lab"
	"github.com/rehome-net/rehome/netns-lab/labtest"
	"github.com/rehome-net/rehome/netns-lab/leakcheck"
)

func TestMain(m *testing.M) {
	os.Exit(leakcheck.Main(m, leakcheck.Config{Namespaces: "rh-" + labtest.Prefix()}))
}

func server(t *testing.T) *netnslab.Host {
	t.Helper()
	return labtest.Host(t, labtest.New(t, netnslab.Standard(1)), "a")
}

func try(t *testing.T, h *netnslab.Host, c Config) (a *Acceptor, failed error) {
	t.Helper()
	if err := h.Do(func() error {
		a, failed = Open(c)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if errors.Is(failed, ErrUnsupported) {
		t.Skip(failed)
	}
	if a != nil {
		t.Cleanup(func() {
			if err := a.Remove(); err != nil {
				t.Error(err)
			}
		})
	}
	return a, failed
}

func config() Config {
	return Config{Interface: netnslab.Interface, Parameters: Parameters{Secret: Secret{1}}}
}

func TestOpenRefuses(t *testing.T) {
	h := server(t)
	for name, c := range map[string]Config{
		"no secret":    {Interface: netnslab.Interface},
		"no interface": {Parameters: config().Parameters},
		"scale":        {Interface: netnslab.Interface, Parameters: Parameters{Secret: Secret{1}, WindowScale: 15}},
	} {
		if _, err := try(t, h, c); err == nil {
			t.Errorf("%s: opened", name)
		}
	}
	if err := h.SetSysctl("net.ipv4.tcp_syncookies", "0"); err != nil {
		t.Fatal(err)
	}
	if _, err := try(t, h, config()); !errors.Is(err, ErrSyncookies) {
		t.Errorf("without syncookies: %v", err)
	}
}

func TestOneAtATime(t *testing.T) {
	h := server(t)
	if _, err := try(t, h, config()); err != nil {
		t.Fatal(err)
	}
	if _, err := try(t, h, config()); !errors.Is(err, ErrAttached) {
		t.Errorf("a second one: %v", err)
	}
}

func programs(t *testing.T, h *netnslab.Host) (n int) {
	t.Helper()
	if err := h.Do(func() error {
		at, err := net.InterfaceByName(netnslab.Interface)
		if err != nil {
			return err
		}
		r, err := link.QueryPrograms(link.QueryOptions{Target: at.Index, Attach: ebpf.AttachTCXIngress})
		if err == nil {
			n = len(r.Programs)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return n
}

// bpffs mounts a BPF filesystem for the test.
func bpffs(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("rehome-test", dir, "bpf", 0, ""); err != nil {
		t.Skipf("cannot mount a BPF filesystem: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return filepath.Join(dir, "cookie")
}

// What is pinned goes on when the process has gone, and with the next one; Remove leaves nothing.
func TestPinned(t *testing.T) {
	h := server(t)
	c := config()
	c.PinPath = bpffs(t)
	service := netip.MustParseAddrPort("10.77.0.100:80")
	for range 3 {
		a, err := try(t, h, c)
		if err != nil {
			t.Fatal(err)
		}
		if err := a.AddService(service); err != nil {
			t.Fatal(err)
		}
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
		if n := programs(t, h); n != 1 {
			t.Fatalf("%d programs after Close, want 1", n)
		}
	}
	a, err := try(t, h, c)
	if err != nil {
		t.Fatal(err)
	}
	var there uint32
	if err := a.maps.Services.Lookup(serviceKey(service), &there); err != nil {
		t.Errorf("the service is gone: %v", err)
	}
	if err := errors.Join(a.RemoveService(service), a.RemoveService(service)); err != nil {
		t.Error(err)
	}
	if err := a.AddService(netip.AddrPort{}); err == nil {
		t.Error("no address is a service")
	}
	if err := a.Remove(); err != nil {
		t.Error(err)
	}
	if n := programs(t, h); n != 0 {
		t.Errorf("%d programs after Remove", n)
	}
	if _, err := os.Stat(c.PinPath); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s: %v", c.PinPath, err)
	}
}

// What is pinned can be withdrawn without the process that pinned it; the rest goes on.
func TestWithdraw(t *testing.T) {
	h := server(t)
	c := config()
	c.PinPath = bpffs(t)
	if err := Withdraw(c.PinPath, func(netip.AddrPort) bool { return true }); err != nil {
		t.Errorf("nothing is pinned: %v", err)
	}
	a, err := try(t, h, c)
	if err != nil {
		t.Fatal(err)
	}
	stays, goes := netip.MustParseAddrPort("10.77.0.100:80"), netip.MustParseAddrPort("[2001:db8::100]:80")
	if err := errors.Join(a.AddService(stays), a.AddService(goes), a.Close()); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := Withdraw(c.PinPath, func(at netip.AddrPort) bool { return at == goes }); err != nil {
			t.Fatal(err)
		}
	}
	if a, err = try(t, h, c); err != nil {
		t.Fatal(err)
	}
	if left, err := a.Services(); err != nil || len(left) != 1 || left[0] != stays {
		t.Errorf("%v, %v; want %v", left, err, stays)
	}
	if err := a.Remove(); err != nil {
		t.Error(err)
	}
}
