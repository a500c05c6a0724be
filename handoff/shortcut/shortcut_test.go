// SPDX-License-Identifier: Apache-2.0

//go:build linux

package shortcut_test

import (
	"errors"
	"net/netip"
	"os"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/handoff/shortcut"
	"github.com/rehome-net/rehome/netns-lab/labtest"
	"github.com/rehome-net/rehome/netns-lab/leakcheck"
)

func TestMain(m *testing.M) {
	os.Exit(leakcheck.Main(m, leakcheck.Config{BPF: []string{"guard", "rehome_slide"}}))
}

// needTCX skips where the kernel has no tcx: there is no shortcut then.
func needTCX(t *testing.T) {
	t.Helper()
	_, err := link.QueryPrograms(link.QueryOptions{Target: 1<<31 - 1, Attach: ebpf.AttachTCXIngress})
	if errors.Is(err, unix.EINVAL) {
		t.Skip("needs tcx (Linux 6.6)")
	}
}

func examine(t *testing.T, h *labtest.Namespace, name string, own ...string) (err error) {
	t.Helper()
	h.Do(t, func() error {
		err = shortcut.Examine(h.Netlink, h.Link(t, name).Attrs().Index, own...)
		return nil
	})
	return err
}

// guard attaches a program to the way out of eth0, or to another hook.
func guard(t *testing.T, h *labtest.Namespace, name string, at ebpf.AttachType, verdict int32) {
	t.Helper()
	h.Do(t, func() error {
		p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
			Name: "guard", Type: ebpf.SchedCLS, License: "GPL",
			Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, verdict), asm.Return()},
		})
		if err != nil {
			return err
		}
		t.Cleanup(func() { p.Close() })
		l, err := link.AttachTCX(link.TCXOptions{Interface: h.Link(t, name).Attrs().Index, Program: p, Attach: at})
		if err != nil {
			return err
		}
		t.Cleanup(func() { l.Close() })
		return nil
	})
}

func TestExamine(t *testing.T) {
	needTCX(t)
	qdisc := func(kind string, parent, handle uint32) func(*testing.T, labtest.Bridged) {
		return func(t *testing.T, b labtest.Bridged) {
			h := b.Hosts[0]
			q := &netlink.GenericQdisc{QdiscType: kind, QdiscAttrs: netlink.QdiscAttrs{LinkIndex: h.Index(t), Parent: parent, Handle: handle}}
			if err := h.Netlink.QdiscAdd(q); err != nil {
				t.Skipf("no %s here: %v", kind, err)
			}
		}
	}
	for _, c := range []struct {
		name    string
		prepare func(*testing.T, labtest.Bridged)
		own     []string
		want    error
	}{
		{name: "container", prepare: func(*testing.T, labtest.Bridged) {}},
		{"down", func(t *testing.T, b labtest.Bridged) {
			if err := b.Hosts[0].Netlink.LinkSetDown(b.Hosts[0].Link(t, "eth0")); err != nil {
				t.Fatal(err)
			}
		}, nil, shortcut.ErrDown},
		{"other end down", func(t *testing.T, b labtest.Bridged) {
			if err := b.Hub.Netlink.LinkSetDown(b.Hub.Link(t, b.Port(0))); err != nil {
				t.Fatal(err)
			}
		}, nil, shortcut.ErrDown},
		{"queue", qdisc("pfifo", netlink.HANDLE_ROOT, netlink.MakeHandle(1, 0)), nil, shortcut.ErrObserved},
		{"clsact", qdisc("clsact", netlink.HANDLE_CLSACT, netlink.MakeHandle(0xffff, 0)), nil, shortcut.ErrObserved},
		{"ingress alone", qdisc("ingress", netlink.HANDLE_INGRESS, netlink.MakeHandle(0xffff, 0)), nil, nil},
		{"program", func(t *testing.T, b labtest.Bridged) { guard(t, b.Hosts[0], "eth0", ebpf.AttachTCXEgress, -1) }, nil, shortcut.ErrObserved},
		{"own program", func(t *testing.T, b labtest.Bridged) { guard(t, b.Hosts[0], "eth0", ebpf.AttachTCXEgress, -1) }, []string{"guard"}, nil},
		{"program at the way in", func(t *testing.T, b labtest.Bridged) { guard(t, b.Hosts[0], "eth0", ebpf.AttachTCXIngress, -1) }, nil, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := labtest.Network(t, 1)
			c.prepare(t, b)
			if err := examine(t, b.Hosts[0], "eth0", c.own...); !errors.Is(err, c.want) {
				t.Errorf("%v, want %v", err, c.want)
			}
		})
	}
}

func TestExamineOtherLinks(t *testing.T) {
	needTCX(t)
	h := labtest.NewNamespace(t)
	for _, l := range []netlink.Link{
		&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "near"}, PeerName: "far"},
		&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "bridge"}},
	} {
		if err := h.Netlink.LinkAdd(l); err != nil {
			t.Fatal(err)
		}
	}
	h.Up(t, "near")
	h.Up(t, "far")
	for name, want := range map[string]error{"near": shortcut.ErrSameNamespace, "bridge": shortcut.ErrNotVeth, "lo": shortcut.ErrNotVeth} {
		if err := examine(t, h, name); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
	}
	h.Do(t, func() error {
		var none netlink.LinkNotFoundError
		if err := shortcut.Examine(h.Netlink, 4711); !errors.As(err, &none) {
			t.Errorf("no such interface: %v", err)
		}
		return nil
	})
}

func prove(t *testing.T, h *labtest.Namespace, neighbours ...netip.Addr) (err error) {
	t.Helper()
	before := links(t, h)
	h.Do(t, func() error {
		err = shortcut.Prove(h.Netlink, h.Index(t), neighbours)
		return nil
	})
	if d := cmp.Diff(before, links(t, h)); d != "" {
		t.Errorf("Prove has left something: %s", d)
	}
	return err
}

func links(t *testing.T, h *labtest.Namespace) (names []string) {
	t.Helper()
	list, err := h.Netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range list {
		names = append(names, l.Attrs().Name)
	}
	return names
}

func TestProve(t *testing.T) {
	needTCX(t)
	there, nobody := netip.MustParseAddr("10.66.0.2"), netip.MustParseAddr("10.66.0.9")
	t.Run("arrives", func(t *testing.T) {
		b := labtest.Network(t, 2)
		h := b.Hosts[0]
		// IPv6 has something of its own to say when a link is young.
		h.Do(t, func() error { return os.WriteFile("/proc/sys/net/ipv6/conf/eth0/disable_ipv6", []byte("1"), 0o600) })
		before := h.Link(t, "eth0").Attrs().Statistics.TxPackets
		if err := prove(t, h, nobody, there); err != nil {
			t.Error(err)
		}
		if sent := h.Link(t, "eth0").Attrs().Statistics.TxPackets - before; sent > 0 {
			t.Errorf("%d frames left by the interface", sent)
		}
	})
	t.Run("nobody is known", func(t *testing.T) {
		if err := prove(t, labtest.Network(t, 1).Hosts[0]); !errors.Is(err, shortcut.ErrNoNeighbour) {
			t.Error(err)
		}
	})
	t.Run("nobody is there", func(t *testing.T) {
		if err := prove(t, labtest.Network(t, 2).Hosts[0], nobody); !errors.Is(err, shortcut.ErrLost) {
			t.Error(err)
		}
	})
	t.Run("dropped at the other end", func(t *testing.T) {
		b := labtest.Network(t, 2)
		guard(t, b.Hub, b.Port(0), ebpf.AttachTCXIngress, 2)
		if err := prove(t, b.Hosts[0], there); !errors.Is(err, shortcut.ErrLost) {
			t.Error(err)
		}
	})
}

func TestProveInOneNamespace(t *testing.T) {
	needTCX(t)
	h := labtest.NewNamespace(t)
	if err := h.Netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "far"}); err != nil {
		t.Fatal(err)
	}
	h.Up(t, "eth0")
	h.Up(t, "far")
	h.Address(t, "far", "10.66.0.2/24")
	// The kernel drops what Examine would have refused.
	if err := prove(t, h, netip.MustParseAddr("10.66.0.2")); !errors.Is(err, shortcut.ErrLost) {
		t.Error(err)
	}
}

func TestNeighbours(t *testing.T) {
	b := labtest.Network(t, 1)
	h := b.Hosts[0]
	neighbour := func(ip string, state int) {
		t.Helper()
		n := &netlink.Neigh{LinkIndex: h.Index(t), Family: netlink.FAMILY_V4, State: state, IP: netip.MustParseAddr(ip).AsSlice(), HardwareAddr: []byte{2, 0, 0, 0, 0, 9}}
		if err := h.Netlink.NeighSet(n); err != nil {
			t.Fatal(err)
		}
	}
	neighbour("10.66.0.5", netlink.NUD_REACHABLE)
	neighbour("10.66.0.6", netlink.NUD_FAILED)
	all, _ := netlink.ParseIPNet("0.0.0.0/0")
	if err := h.Netlink.RouteAdd(&netlink.Route{LinkIndex: h.Index(t), Dst: all, Gw: netip.MustParseAddr("10.66.0.254").AsSlice()}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name        string
		named, want []string
	}{
		{"found", nil, []string{"10.66.0.254", "10.66.0.5"}},
		{"named", []string{"10.66.0.7", "::ffff:10.66.0.8", "192.0.2.1", "10.66.0.7"}, []string{"10.66.0.7", "10.66.0.8"}},
		{"named elsewhere", []string{"192.0.2.1"}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			var named []netip.Addr
			for _, a := range c.named {
				named = append(named, netip.MustParseAddr(a))
			}
			got, err := shortcut.Neighbours(h.Netlink, h.Index(t), named...)
			if err != nil {
				t.Fatal(err)
			}
			var names []string
			for _, a := range got {
				names = append(names, a.String())
			}
			if d := cmp.Diff(c.want, names, cmpopts.EquateEmpty()); d != "" {
				t.Error(d)
			}
		})
	}
}
