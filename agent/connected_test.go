// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"net"
	"net/netip"
	"strconv"
	"testing"
	"time"

	"github.com/rehome-net/rehome/tcprepair"
)

func TestConnected(t *testing.T) {
	for _, at := range []string{"127.0.0.1:0", "[::1]:0"} {
		ln, err := net.Listen("tcp", at)
		if err != nil {
			t.Skipf("no %s here: %v", at, err)
		}
		defer ln.Close()
		near, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer near.Close()
		f := tcprepair.NewFlow(near.LocalAddr().(*net.TCPAddr).AddrPort(), near.RemoteAddr().(*net.TCPAddr).AddrPort())
		if is, err := connected(f, 0); is != present || err != nil {
			t.Errorf("%v: %v, %v", f, is, err)
		}
		// The listener would take this one, but has not got it.
		f = tcprepair.NewFlow(near.RemoteAddr().(*net.TCPAddr).AddrPort(), ln.Addr().(*net.TCPAddr).AddrPort())
		if is, err := connected(f, 0); is != absent || err != nil {
			t.Errorf("%v, for which somebody only listens: %v, %v", f, is, err)
		}
		f = tcprepair.NewFlow(near.LocalAddr().(*net.TCPAddr).AddrPort(), near.LocalAddr().(*net.TCPAddr).AddrPort())
		if is, err := connected(f, 0); is != absent || err != nil {
			t.Errorf("%v, which nobody has: %v, %v", f, is, err)
		}
	}
}

// TestDiagnosis looks at a connection through its life, and at what is left of it.
func TestDiagnosis(t *testing.T) {
	d, err := openDiagnosis()
	if err != nil {
		t.Fatal(err)
	}
	defer d.close()
	for _, c := range []struct{ name, listen, dial string }{
		{"IPv4", "127.0.0.1:0", "127.0.0.1"},
		{"IPv6", "[::1]:0", "::1"},
		{"IPv4 at an IPv6 socket", "[::]:0", "127.0.0.1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var lc net.ListenConfig
			lc.SetMultipathTCP(false)
			ln, err := lc.Listen(t.Context(), "tcp", c.listen)
			if err != nil {
				t.Skipf("no %s here: %v", c.listen, err)
			}
			defer ln.Close()
			near, err := net.Dial("tcp", net.JoinHostPort(c.dial, strconv.Itoa(ln.Addr().(*net.TCPAddr).Port)))
			if err != nil {
				t.Fatal(err)
			}
			defer near.Close()
			far, err := ln.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer far.Close()
			f := tcprepair.NewFlow(far.LocalAddr().(*net.TCPAddr).AddrPort(), far.RemoteAddr().(*net.TCPAddr).AddrPort())
			expect := func(when string, want tcprepair.State) {
				t.Helper()
				var got tcprepair.State
				for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
					var err error
					if got, err = d.state(f); err != nil {
						t.Fatal(err)
					}
					if got == want {
						return
					}
				}
				t.Fatalf("%s: %v, want %v", when, got, want)
			}
			expect("connected", tcprepair.Established)
			_ = far.Close()
			expect("closed by the server", tcprepair.FinWait2)
			_ = near.Close()
			expect("closed by both", stateTimeWait)
			f.Remote = netip.AddrPortFrom(f.Remote.Addr(), 1)
			expect("of a client that is not there", stateNone)
		})
	}
}

func FuzzReadAnswer(f *testing.F) {
	f.Add([]byte("\x24\x00\x00\x00\x02\x00\x00\x00\x07\x00\x00\x00\x00\x00\x00\x00\xfe\xff\xff\xff"), uint32(7))
	f.Add([]byte("\x58\x00\x00\x00\x14\x00\x00\x00\x07\x00\x00\x00\x00\x00\x00\x00\x02\x01\x00\x00"), uint32(7))
	f.Fuzz(func(t *testing.T, b []byte, sequence uint32) {
		if s, mine, err := readAnswer(b, sequence); s != stateNone && (!mine || err != nil) {
			t.Errorf("%v, %v, %v", s, mine, err)
		}
	})
}
