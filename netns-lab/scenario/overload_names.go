// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rehome-net/rehome/dispatcher"
	netnslab "github.com/rehome-net/rehome/netns-lab"
)

const (
	// namesService is the service of datagrams: dnsmasq, which nobody changed, on every server. Whom it asks is slow, and is what can be overloaded.
	namesService = "names"
	// upstreamPort is where dnsmasq finds that, on its own host.
	upstreamPort = 5353
	// maxPending is how many questions dnsmasq may be waiting for answers to: more than a server is ever given in a run.
	maxPending = 100_000
)

// upstream is the server behind a server of names: it answers each question after the time that its queue says. It counts what comes.
type upstream struct {
	server  *queueServer
	conn    net.PacketConn
	address netip.Addr // what it answers
	wg      sync.WaitGroup

	mu      sync.Mutex
	run     int
	arrived int          // questions of the run
	seen    map[int]bool // sessions of the run
	err     error        // the first datagram that was none of the scene's
}

// startUpstream starts one on a host, whose requests go into the queue of server. close ends it.
func startUpstream(ctx context.Context, h *netnslab.Host, server *queueServer) (*upstream, error) {
	conn, err := h.ListenPacket(ctx, "udp", netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), upstreamPort).String())
	if err != nil {
		return nil, err
	}
	u := &upstream{server: server, conn: conn, address: h.Addr4(), seen: make(map[int]bool)}
	u.wg.Go(u.serve)
	return u, nil
}

func (u *upstream) close() error {
	err := u.conn.Close()
	u.wg.Wait()
	return err
}

func (u *upstream) serve() {
	into := make([]byte, maxQuestion)
	for {
		n, from, err := u.conn.ReadFrom(into)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an answer that nobody waited for any more
		}
		q, answer, err := openQuery(into[:n], u.address)
		u.count(q, err)
		if err != nil {
			continue
		}
		time.AfterFunc(time.Until(u.server.take()), func() { _, _ = u.conn.WriteTo(answer, from) })
	}
}

func (u *upstream) count(q question, err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	switch {
	case err != nil && u.err == nil:
		u.err = err
	case err == nil && q.run == u.run:
		u.arrived++
		u.seen[q.session] = true
	}
}

// begin has a new run counted.
func (u *upstream) begin(run int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.run, u.arrived, u.seen = run, 0, make(map[int]bool)
}

// counted returns how many questions of the run have come, and of how many sessions.
func (u *upstream) counted() (arrived, sessions int, err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.arrived, len(u.seen), u.err
}

// saw reports whether a question of that session has come.
func (u *upstream) saw(session int) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.seen[session]
}

// serveNames starts dnsmasq on a server, bound to the virtual address.
func (m *managedLab) serveNames(ctx context.Context, server string) (*program, error) {
	vip := m.Lab.Topology().VIP4()
	h, err := m.Lab.Host(server)
	if err != nil {
		return nil, err
	}
	p, err := m.launchProgram(ctx, server, "dnsmasq", "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--user=root", "--group=root",
		"--pid-file=", "--no-resolv", "--no-hosts", "--cache-size=0", "--dns-forward-max="+strconv.Itoa(maxPending),
		"--port="+strconv.Itoa(DNSPort), "--bind-interfaces", "--listen-address="+vip.String(), fmt.Sprintf("--server=127.0.0.1#%d", upstreamPort))
	if err != nil {
		return nil, err
	}
	if err := m.await(ctx, p.daemon, func(context.Context) error { return boundAt(h, "udp", netip.AddrPortFrom(vip, DNSPort)) }); err != nil {
		return nil, errors.Join(err, p.kill())
	}
	return p, nil
}

// datagramService makes a dispatcher's configuration that of the servers of names.
func (m *managedLab) datagramService(c *dispatcher.Config) {
	c.Services[0] = dispatcher.ServiceConfig{
		Name: namesService, Mode: dispatcher.ModeUDP, Addresses: at(m.Lab.Topology().VIPs[:1], DNSPort), Default: namesService,
		Sticky: dispatcher.StickyNone,
	}
	c.Sessions.PerClient = maxPending // all clients of the lab have one address
	c.Pools[0].Name, c.Pools[0].Service, c.Pools[0].Delivery = namesService, namesService, dispatcher.DeliveryUnmodified
}

// The ports of the clients of names: none of them is used twice while the dispatcher may know the flow of the session that had it, and none is the kernel's to
// give away (net.ipv4.ip_local_port_range).
const (
	firstNamesPort = 10_000
	lastNamesPort  = 32_000
)

// dialNames returns a dialer from the client to the servers of names, each time from the next port.
func (m *managedLab) dialNames() dialer {
	to := net.UDPAddrFromAddrPort(netip.AddrPortFrom(m.Lab.Topology().VIP4(), DNSPort))
	var dialled atomic.Uint32
	return func(context.Context) (conn net.Conn, err error) {
		client, err := m.Lab.Host(ClientHost)
		if err != nil {
			return nil, err
		}
		from := &net.UDPAddr{Port: firstNamesPort + int(dialled.Add(1))%(lastNamesPort-firstNamesPort)}
		err = client.Do(func() (err error) {
			conn, err = net.DialUDP("udp", from, to)
			return err
		})
		return conn, err
	}
}
