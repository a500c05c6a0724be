// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"net"
	"testing"

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
		if yes, err := connected(f); !yes || err != nil {
			t.Errorf("%v: %v, %v", f, yes, err)
		}
		// The listener would take this one, but has not got it.
		f = tcprepair.NewFlow(near.RemoteAddr().(*net.TCPAddr).AddrPort(), ln.Addr().(*net.TCPAddr).AddrPort())
		if yes, err := connected(f); yes || err != nil {
			t.Errorf("%v, for which somebody only listens: %v, %v", f, yes, err)
		}
		f = tcprepair.NewFlow(near.LocalAddr().(*net.TCPAddr).AddrPort(), near.LocalAddr().(*net.TCPAddr).AddrPort())
		if yes, err := connected(f); yes || err != nil {
			t.Errorf("%v, which nobody has: %v, %v", f, yes, err)
		}
	}
}
