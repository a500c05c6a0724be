// SPDX-License-Identifier: Apache-2.0

package labtest_test

import (
	"bytes"
	"net"
	"os"
	"testing"
	"time"

	netnslab "github.com/rehome-net/rehome/netns-lab"
	"github.com/rehome-net/rehome/netns-lab/labtest"
)

// namespaceOf names the namespace of the thread that it is called on.
func namespaceOf(t *testing.T, run func(testing.TB, func() error)) (name string) {
	t.Helper()
	run(t, func() (err error) {
		name, err = os.Readlink("/proc/thread-self/ns/net")
		return err
	})
	return name
}

func TestNamespaceIsItsOwn(t *testing.T) {
	a, b := labtest.NewNamespace(t), labtest.NewNamespace(t)
	here := namespaceOf(t, func(t testing.TB, f func() error) {
		if err := f(); err != nil {
			t.Fatal(err)
		}
	})
	first, second := namespaceOf(t, a.Do), namespaceOf(t, b.Do)
	if first == here || second == here || first == second {
		t.Errorf("namespaces %s and %s, the test's own is %s", first, second, here)
	}
	if again := namespaceOf(t, a.Do); again != first {
		t.Errorf("the same namespace is %s, then %s", first, again)
	}
	a.Sysctl(t, "net/ipv4/ip_forward", "1")
	for n, want := range map[*labtest.Namespace]string{a: "1\n", b: "0\n"} {
		n.Do(t, func() error {
			got, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward")
			if string(got) != want {
				t.Errorf("ip_forward is %q, want %q", got, want)
			}
			return err
		})
	}
}

// Both IP versions cross the bridge.
func TestNetwork(t *testing.T) {
	n := labtest.Network(t, 2)
	a, b := n.Hosts[0], n.Hosts[1]
	for _, at := range []string{"10.66.0.2:80", "[fd66::2]:80"} {
		l := b.Listen(t, at)
		a.Do(t, func() error {
			c, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(t.Context(), "tcp", l.Addr().String())
			if err != nil {
				return err
			}
			return c.Close()
		})
	}
	if bytes.Equal(a.MAC(t), b.MAC(t)) {
		t.Errorf("both hosts have the address %v", a.MAC(t))
	}
	for i, h := range n.Hosts {
		port, own := n.Hub.Link(t, n.Port(i)), h.Link(t, netnslab.Interface)
		if port.Attrs().ParentIndex != h.Index(t) || own.Attrs().ParentIndex != port.Attrs().Index {
			t.Errorf("host %d: %s is not the other end of eth0", i, n.Port(i))
		}
	}
	b.Address(t, netnslab.Interface, "10.66.0.2/24") // has it already
}

func TestEventually(t *testing.T) {
	calls := 0
	labtest.Eventually(t, "three calls", func() bool { calls++; return calls == 3 })
	if calls != 3 {
		t.Errorf("%d calls", calls)
	}
}
