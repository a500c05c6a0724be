// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/handoff/sockops"
	"github.com/rehome-net/rehome/tcprepair"
)

const (
	// pollInterval is how often the kernel is asked for its connections, and pollShare what part of the time that may take: many connections
	// are asked for less often.
	pollInterval = time.Second
	pollShare    = 20
)

// poll finds out which connections have ended by listing them again and again, where no program may see it (sock_diag(7)).
type poll struct {
	list   func() ([]socketState, error)
	closed chan struct{}
	once   sync.Once

	mu       sync.Mutex
	census   *census
	services map[netip.AddrPort]bool
	pause    time.Duration
}

func newPoll(services []netip.AddrPort, list func() ([]socketState, error)) *poll {
	p := &poll{list: list, closed: make(chan struct{}), census: newCensus(), pause: pollInterval}
	_ = p.SetServices(services) // it never fails
	return p
}

// SetServices implements watched.
func (p *poll) SetServices(all []netip.AddrPort) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.services = make(map[netip.AddrPort]bool, len(all))
	for _, a := range all {
		p.services[a] = true
	}
	return nil
}

// note tells of a connection that has come to this host. A nil poll takes no notice.
func (p *poll) note(f tcprepair.Flow) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.census.meet(f)
}

// Read implements endSource: it returns when connections have ended.
func (p *poll) Read(ends []sockops.End) ([]sockops.End, error) {
	timer := time.NewTimer(p.pause)
	defer timer.Stop()
	for {
		select {
		case <-p.closed:
			return ends, os.ErrClosed
		case <-timer.C:
		}
		found, err := p.look()
		if err != nil {
			return ends, err
		}
		if len(found) > 0 {
			return append(ends, found...), nil
		}
		timer.Reset(p.pause)
	}
}

func (p *poll) look() ([]sockops.End, error) {
	begun := time.Now()
	list, err := p.list()
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pause = max(pollInterval, pollShare*time.Since(begun))
	ours := list[:0]
	for _, s := range list {
		if p.services[s.flow.Local] {
			ours = append(ours, s)
		}
	}
	return p.census.take(ours), nil
}

// Lost implements endSource: what has come and gone between two lists and was never noted is not known of.
func (p *poll) Lost() uint64 { return 0 }

// Close implements endSource.
func (p *poll) Close() error {
	p.once.Do(func() { close(p.closed) })
	return nil
}

// Bits of the states in which there is no connection yet (include/net/tcp_states.h).
const bitsUnconnected = 1<<2 | bitSynReceived | bitListen | 1<<12

// connections returns this host's TCP connections, with those that only TIME_WAIT is left of.
func connections() ([]socketState, error) {
	var found []socketState
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		req := nl.NewNetlinkRequest(unix.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP)
		req.AddData(socketQuery{family: family, states: ^uint32(bitsUnconnected)})
		messages, err := req.Execute(unix.NETLINK_INET_DIAG, 0)
		if err != nil {
			return nil, fmt.Errorf("list connections: %w", err)
		}
		for _, m := range messages {
			if s, ok := parseConnection(m); ok {
				found = append(found, s)
			}
		}
	}
	return found, nil
}

// parseConnection returns what a struct inet_diag_msg says.
func parseConnection(m []byte) (socketState, bool) {
	local, ok := parseDiag(m)
	if !ok {
		return socketState{}, false
	}
	port, remote := binary.BigEndian.Uint16(m[6:]), netip.AddrFrom16([16]byte(m[24:40]))
	if m[0] == unix.AF_INET {
		remote = netip.AddrFrom4([4]byte(m[24:28]))
	}
	flow := tcprepair.NewFlow(local, netip.AddrPortFrom(remote, port))
	return socketState{flow: flow, state: tcprepair.State(m[1])}, flow.IsValid()
}
