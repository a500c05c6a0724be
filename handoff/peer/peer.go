// SPDX-License-Identifier: Apache-2.0

// Package peer connects the hosts of a cluster: TLS 1.3 with both sides authenticated, then one exchange of Hello, then a
// wire.Link. Agents and dispatchers connect by it; what they say on the link is not its business.
package peer

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"time"

	"github.com/rehome-net/rehome/handoff/wire"
)

// Timeouts of one attempt to connect, and of the handshake of a connection that has been accepted.
const (
	DialTimeout      = 2 * time.Second
	handshakeTimeout = 2 * time.Second
	keepAlive        = 5 * time.Second
)

// Self is what this host tells others about itself.
type Self struct {
	Host    string
	Version string
	// Identity is nil in a laboratory without TLS.
	Identity *Identity
}

// Dial connects to the host called name, which must call itself so. It gives up after DialTimeout.
func (s Self) Dial(ctx context.Context, name, addr string) (*wire.Link, error) {
	ctx, cancel := context.WithTimeout(ctx, DialTimeout)
	defer cancel()
	d := net.Dialer{KeepAlive: keepAlive}
	d.SetMultipathTCP(false)
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	conn = wire.Prompt(conn)
	if s.Identity != nil {
		c := tls.Client(conn, s.Identity.Client(name))
		if err := c.HandshakeContext(ctx); err != nil {
			_ = conn.Close()
			return nil, err
		}
		conn = c
	}
	link := wire.NewLink(conn)
	if err := s.greet(ctx, link, name); err != nil {
		_ = link.Close()
		return nil, err
	}
	return link, nil
}

// greet exchanges Hello with a peer that must call itself name.
func (s Self) greet(ctx context.Context, link *wire.Link, name string) error {
	stop := context.AfterFunc(ctx, func() { _ = link.Close() })
	defer stop()
	if err := link.Send(0, wire.NewHello(s.Host, s.Version)); err != nil {
		return err
	}
	f, _, err := link.Receive()
	if err != nil {
		return err
	}
	h, ok := f.Message.(*wire.Hello)
	if !ok {
		return fmt.Errorf("%w: %v instead of Hello", wire.ErrMalformed, f.Message.Kind())
	}
	if h.Name != name {
		return fmt.Errorf("the host there calls itself %q, not %q: check the peers' names and addresses", h.Name, name)
	}
	_, err = wire.Negotiate(h)
	return err
}

// Accept finds out who has connected: one of the hosts that known says yes to, and under TLS one that has that host's
// certificate. conn is Accept's; it is closed when there is an error.
func (s Self) Accept(ctx context.Context, conn net.Conn, known func(name string) bool) (string, *wire.Link, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	var state *tls.ConnectionState
	conn = wire.Prompt(conn)
	if s.Identity != nil {
		c := tls.Server(conn, s.Identity.Server())
		if err := c.HandshakeContext(ctx); err != nil {
			_ = conn.Close()
			return "", nil, err
		}
		st := c.ConnectionState()
		state, conn = &st, c
	}
	link := wire.NewLink(conn)
	stop := context.AfterFunc(ctx, func() { _ = link.Close() })
	defer stop()
	f, _, err := link.Receive()
	if err != nil {
		_ = link.Close()
		return "", nil, err
	}
	name, err := s.identify(f, state, known)
	if err == nil {
		err = link.Send(0, wire.NewHello(s.Host, s.Version))
	}
	if err != nil {
		link.Drain(time.Second)
		_ = link.Close()
		return "", nil, err
	}
	return name, link, nil
}

// identify checks a Hello.
func (s Self) identify(f wire.Frame, state *tls.ConnectionState, known func(string) bool) (string, error) {
	h, ok := f.Message.(*wire.Hello)
	if !ok {
		return "", fmt.Errorf("%w: %v instead of Hello", wire.ErrMalformed, f.Message.Kind())
	}
	if _, err := wire.Negotiate(h); err != nil {
		return "", err
	}
	if h.Name == s.Host {
		return "", fmt.Errorf("the host there calls itself %q, which is this host's name", h.Name)
	}
	if !known(h.Name) {
		return "", fmt.Errorf("%q is no configured peer: add it to peers", h.Name)
	}
	if state != nil {
		if err := is(*state, h.Name); err != nil {
			return "", err
		}
	}
	return h.Name, nil
}
