// SPDX-License-Identifier: Apache-2.0

package synproxy_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/rehome-net/rehome/dispatcher/forward"
	"github.com/rehome-net/rehome/dispatcher/synproxy"
	"github.com/rehome-net/rehome/handoff/cookie"
	"github.com/rehome-net/rehome/handoff/gate"
)

// Requests for /a go to node 1, others to node 2.
func byPath(q synproxy.Request) synproxy.Decision {
	line, _, whole := bytes.Cut(q.Bytes, []byte("\r\n"))
	switch {
	case !whole && len(q.Bytes) < 4096:
		return synproxy.Decision{Verb: synproxy.Wait}
	case !whole:
		return synproxy.Decision{Verb: synproxy.Answer, Answer: []byte("HTTP/1.1 414 URI Too Long\r\nConnection: close\r\n\r\n")}
	case bytes.HasPrefix(line, []byte("GET /a")):
		return synproxy.Decision{Verb: synproxy.Forward, Node: 1 + gate.Node(q.Returned)}
	}
	return synproxy.Decision{Verb: synproxy.Forward, Node: 2}
}

func Example() {
	run := func(ctx context.Context, secret cookie.Secret, table *forward.Forwarder, ifindex int, own, a, b net.HardwareAddr) (err error) {
		p, err := synproxy.Open(synproxy.Config{
			Interface: "eth0", PinPath: "/sys/fs/bpf/rehome-synproxy", Parameters: cookie.Parameters{Secret: secret}, Table: table, Decide: byPath,
		})
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, p.Close()) }()
		if err := errors.Join(
			p.SetNode(1, ifindex, a, own),
			p.SetNode(2, ifindex, b, own),
			p.AddService(netip.MustParseAddrPort("198.51.100.1:80")),
		); err != nil {
			return err
		}
		return p.Run(ctx)
	}
	_ = run
	fmt.Println(byPath(synproxy.Request{Bytes: []byte("GET /ab")}).Verb)
	fmt.Println(byPath(synproxy.Request{Bytes: []byte("GET /abc HTTP/1.1\r\n")}).Verb)
	// Output:
	// wait
	// forward
}
