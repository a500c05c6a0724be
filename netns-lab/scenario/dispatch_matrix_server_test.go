// SPDX-License-Identifier: Apache-2.0

package scenario_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/handoff"
	netnslab "github.com/rehome-net/rehome/netns-lab"
	"github.com/rehome-net/rehome/netns-lab/scenario"
)

// exchange is what is to happen on one connection. Both ends know it and check all that they read against it.
type exchange struct {
	// messages are what the client sends, answers what the server says to each.
	messages, answers [][]byte
	// halfClose means that the client has nothing more to say after the last message, and the server answers the last one when it has seen that.
	halfClose bool
	// local is the address that the client has connected to.
	local netip.AddrPort
	// served gets what a server has to say about it; a second server would be one too many.
	served chan serving
}

type serving struct {
	host string
	err  error
}

// exchangeTime bounds each end's part.
const exchangeTime = 10 * time.Second

// matrixServers are the servers of all deliveries on all hosts, in this process.
type matrixServers struct {
	tb testing.TB
	// known are the exchanges by the client's address: a server that does not see the true one finds none.
	known sync.Map // netip.AddrPort to *exchange
	// others takes the connections of clients that are not known; none may come while it is nil.
	others atomic.Pointer[func(net.Conn)]
	open   atomic.Int64
	group  sync.WaitGroup
}

// accept serves what a listener accepts until it is closed.
func (s *matrixServers) accept(host string, ln net.Listener) {
	for {
		c, err := ln.Accept()
		if err != nil {
			if !errors.Is(err, net.ErrClosed) {
				s.tb.Errorf("%s: %v", host, err)
			}
			return
		}
		remote, err := addrOf(c.RemoteAddr())
		if err != nil {
			s.tb.Errorf("%s: %v", host, err)
		}
		s.take(host, c, remote)
	}
}

func (s *matrixServers) take(host string, c net.Conn, remote netip.AddrPort) {
	s.open.Add(1)
	s.group.Go(func() {
		defer s.open.Add(-1)
		defer c.Close()
		if found, ok := s.known.LoadAndDelete(remote); ok {
			x := found.(*exchange)
			x.served <- serving{host, x.serve(c)}
			return
		}
		others := s.others.Load()
		if others == nil {
			s.tb.Errorf("%s: a connection from %v, which is no client, or is a client's second one", host, remote)
			return
		}
		(*others)(c)
	})
}

func addrOf(a net.Addr) (netip.AddrPort, error) {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}, fmt.Errorf("%v is no TCP address", a)
	}
	at := tcp.AddrPort()
	return netip.AddrPortFrom(at.Addr().Unmap(), at.Port()), nil
}

// serve is the server's part.
func (x *exchange) serve(c net.Conn) error {
	if err := c.SetDeadline(time.Now().Add(exchangeTime)); err != nil {
		return err
	}
	if local, err := addrOf(c.LocalAddr()); err != nil {
		return err
	} else if local != x.local {
		return fmt.Errorf("the server's own address is %v, the client connected to %v", local, x.local)
	}
	for i, m := range x.messages {
		if err := same(c, m); err != nil {
			return fmt.Errorf("message %d: %w", i, err)
		}
		if x.halfClose && i == len(x.messages)-1 {
			if err := nothingMore(c); err != nil {
				return err
			}
		}
		if _, err := c.Write(x.answers[i]); err != nil {
			return fmt.Errorf("answer %d: %w", i, err)
		}
	}
	if x.halfClose {
		return nil
	}
	return nothingMore(c)
}

// same reads as many bytes as want has and compares.
func same(r io.Reader, want []byte) error {
	got := make([]byte, len(want))
	n, err := io.ReadFull(r, got)
	for i := range got[:n] {
		if got[i] != want[i] {
			return fmt.Errorf("byte %d of %d is %d, want %d", i, len(want), got[i], want[i])
		}
	}
	if err != nil {
		return fmt.Errorf("after %d of %d bytes: %w", n, len(want), err)
	}
	return nil
}

func nothingMore(r io.Reader) error {
	if n, err := r.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		return fmt.Errorf("at the end: %d bytes, %s; want EOF", n, fmt.Sprint(err))
	}
	return nil
}

// rampBytes returns the ramp from a byte on.
func rampBytes(start, size int) []byte {
	var b bytes.Buffer
	_, _ = io.Copy(&b, netnslab.NewRamp(int64(start), int64(size)))
	return b.Bytes()
}

// listen starts the servers of one host. What they listen on is closed when the test ends.
func (s *matrixServers) listen(ctx context.Context, b *scenario.Bench, host string) error {
	h := b.Host(host)
	for _, mode := range matrixModes() {
		for delivery := range matrixPorts(mode) {
			port := matrixPorts(mode)[delivery]
			// One host has a socket for both IP versions, the other one for each: to the kernel that makes a difference (KERNEL 17).
			addresses := []string{fmt.Sprintf("[::]:%d", port)}
			if host == matrixHosts()[1] && (delivery == "unmodified" || delivery == deliverySocketless) {
				vips := b.Lab.Topology().VIPs
				addresses = []string{netip.AddrPortFrom(vips[0], port).String(), netip.AddrPortFrom(vips[1], port).String()}
			}
			if delivery == "fd" {
				continue
			}
			for _, a := range addresses {
				ln, err := h.Listen(ctx, "tcp", a)
				if err != nil {
					return err
				}
				if delivery == "linked" {
					agentSocket := scenario.AgentSocket(b.Lab.Topology().Name, host)
					if ln, err = handoff.Wrap(ln.(*net.TCPListener), handoff.Config{Service: matrixPool(delivery, mode), Agent: agentSocket}); err != nil {
						return err
					}
				}
				s.run(host, ln, s.accept)
			}
		}
	}
	ln, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: b.Path(host, "fd.sock"), Net: "unixpacket"})
	if err != nil {
		return err
	}
	s.run(host, ln, s.acceptDescriptors)
	return nil
}

func (s *matrixServers) run(host string, ln net.Listener, accept func(string, net.Listener)) {
	s.group.Go(func() { accept(host, ln) })
	s.tb.Cleanup(func() { _ = ln.Close() })
}

// acceptDescriptors is a server that takes descriptors: one message on each connection.
func (s *matrixServers) acceptDescriptors(host string, ln net.Listener) {
	for {
		c, err := ln.Accept()
		if err != nil {
			if !errors.Is(err, net.ErrClosed) {
				s.tb.Errorf("%s: %v", host, err)
			}
			return
		}
		s.group.Go(func() {
			defer c.Close()
			conn, remote, err := receiveDescriptor(c.(*net.UnixConn))
			if errors.Is(err, io.EOF) {
				return // the agent has changed its mind
			}
			if err != nil {
				s.tb.Errorf("%s: %v", host, err)
				return
			}
			s.take(host, conn, remote)
		})
	}
}

// receiveDescriptor receives a connection and the line that comes with it, which says who the client is also when it has gone already.
func receiveDescriptor(c *net.UnixConn) (net.Conn, netip.AddrPort, error) {
	fail := func(format string, args ...any) (net.Conn, netip.AddrPort, error) {
		return nil, netip.AddrPort{}, fmt.Errorf(format, args...)
	}
	_ = c.SetDeadline(time.Now().Add(exchangeTime))
	text, oob := make([]byte, 256), make([]byte, 64)
	n, oobn, _, _, err := c.ReadMsgUnix(text, oob)
	if err != nil {
		return nil, netip.AddrPort{}, err
	}
	if n == 0 {
		return nil, netip.AddrPort{}, io.EOF
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(messages) != 1 {
		return fail("%d control messages with %q: %v", len(messages), text[:n], err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return fail("descriptors %v with %q: %v", fds, text[:n], err)
	}
	file := os.NewFile(uintptr(fds[0]), "handed over")
	defer file.Close()
	conn, err := net.FileConn(file)
	if err != nil {
		return nil, netip.AddrPort{}, err
	}
	client, server, _ := strings.Cut(strings.TrimSuffix(string(text[:n]), "\n"), " ")
	remote, err := netip.ParseAddrPort(client)
	if local, lerr := addrOf(conn.LocalAddr()); err != nil || lerr != nil || local.String() != server {
		_ = conn.Close()
		return fail("the line %q came with a connection to %v: %v %v", text[:n], local, err, lerr)
	}
	return conn, remote, nil
}
