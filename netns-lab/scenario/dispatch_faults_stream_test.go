// SPDX-License-Identifier: Apache-2.0

package scenario_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	netnslab "github.com/rehome-net/rehome/netns-lab"
)

// outcome is what became of a request.
type outcome struct {
	// host has answered, with the right answer; empty if nobody has.
	host  string
	from  string // the client's address
	begun time.Time
	took  time.Duration
	err   error
}

// Kinds of outcomes.
const (
	answered    = "answered"
	unavailable = "503"     // nobody has taken the connection
	ended       = "ended"   // the connection was reset or closed
	refused     = "refused" // nobody listens
	hung        = "hung"    // nothing was heard within requestLimit
	wrong       = "wrong"
)

// requestLimit is when a request that nothing is heard of counts as hung. One whose server dies between being granted the connection
// and saying that it has it is reset after the time of a handoff and the grace, four seconds.
const requestLimit = 6 * time.Second

func (o outcome) kind() string {
	switch {
	case o.err == nil && o.host != "":
		return answered
	case errors.Is(o.err, errUnavailable):
		return unavailable
	case errors.Is(o.err, unix.ECONNREFUSED):
		return refused
	case errors.Is(o.err, unix.ECONNRESET), errors.Is(o.err, unix.EPIPE), errors.Is(o.err, io.EOF), errors.Is(o.err, io.ErrUnexpectedEOF):
		return ended
	case errors.Is(o.err, os.ErrDeadlineExceeded), errors.Is(o.err, context.DeadlineExceeded):
		return hung
	}
	return wrong
}

var errUnavailable = errors.New("service unavailable")

// caller makes connections from one port after the other, and after the last one from the first again.
type caller struct {
	host        *netnslab.Host
	first, span uint32
	calls       atomic.Uint32
}

func newCaller(host *netnslab.Host, first, span uint32) *caller {
	return &caller{host: host, first: first, span: span}
}

func (c *caller) dial(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	from := c.host.Addr4()
	if to.Addr().Is6() {
		from = c.host.Addr6()
	}
	for {
		var conn net.Conn
		err := c.host.Do(func() (err error) {
			port := c.first + (c.calls.Add(1)-1)%c.span
			d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, uint16(port)))}
			d.SetMultipathTCP(false)
			conn, err = d.DialContext(ctx, "tcp", to.String())
			return err
		})
		// This host may still remember the port's last connection (TIME_WAIT).
		if !errors.Is(err, unix.EADDRINUSE) && !errors.Is(err, unix.EADDRNOTAVAIL) || ctx.Err() != nil {
			return conn, err
		}
	}
}

// request asks who serves, with a connection of its own.
func request(client *caller, to netip.AddrPort) (o outcome) {
	o.begun = time.Now()
	defer func() { o.took = time.Since(o.begun) }()
	ctx, cancel := context.WithDeadline(context.Background(), o.begun.Add(requestLimit))
	defer cancel()
	conn, err := client.dial(ctx, to)
	if err != nil {
		o.err = err
		return o
	}
	defer conn.Close()
	o.from = conn.LocalAddr().String()
	_ = conn.SetDeadline(o.begun.Add(requestLimit))
	if _, o.err = io.WriteString(conn, "GET /who HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n\r\n"); o.err != nil {
		return o
	}
	o.host, o.err = readWho(bufio.NewReader(conn))
	return o
}

// readWho reads an answer, which is a host's name.
func readWho(r *bufio.Reader) (string, error) {
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		return "", err
	}
	text, err := io.ReadAll(resp.Body)
	switch who := strings.TrimSpace(string(text)); {
	case err != nil:
		return "", err
	case resp.StatusCode == http.StatusServiceUnavailable:
		return "", errUnavailable
	case resp.StatusCode != http.StatusOK || !slices.Contains(faultHosts(), who):
		return "", fmt.Errorf("%s: %q", resp.Status, text)
	default:
		return who, nil
	}
}

// stream is some clients that make one request after the other.
type stream struct {
	stop  chan struct{}
	group sync.WaitGroup

	mu       sync.Mutex
	outcomes []outcome
}

// startStream lets so many clients work.
func startStream(client *caller, to netip.AddrPort, clients int) *stream {
	s := &stream{stop: make(chan struct{})}
	for range clients {
		s.group.Go(func() {
			for {
				select {
				case <-s.stop:
					return
				case <-time.After(2 * time.Millisecond): // the machine is small
				}
				o := request(client, to)
				s.mu.Lock()
				s.outcomes = append(s.outcomes, o)
				s.mu.Unlock()
			}
		})
	}
	return s
}

// since returns the outcomes of requests that were begun after a moment and are over.
func (s *stream) since(begin time.Time) []outcome {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []outcome
	for _, o := range s.outcomes {
		if o.begun.After(begin) {
			list = append(list, o)
		}
	}
	return list
}

// end stops the clients and returns all outcomes.
func (s *stream) end() []outcome {
	close(s.stop)
	s.group.Wait()
	return s.since(time.Time{})
}

// tally counts outcomes by kind and answers by host, and finds the longest of each kind.
type tally struct {
	kinds, hosts map[string]int
	longest      map[string]time.Duration
	// bad are those that should not be.
	bad []outcome
}

func count(list []outcome) tally {
	t := tally{kinds: make(map[string]int), hosts: make(map[string]int), longest: make(map[string]time.Duration)}
	for _, o := range list {
		k := o.kind()
		t.kinds[k]++
		t.longest[k] = max(t.longest[k], o.took)
		switch k {
		case answered:
			t.hosts[o.host]++
		case unavailable, hung, wrong:
			t.bad = append(t.bad, o)
		}
	}
	return t
}

func (t tally) String() string {
	var parts []string
	for _, k := range slices.Sorted(maps.Keys(t.kinds)) {
		parts = append(parts, fmt.Sprintf("%d %s (longest %v)", t.kinds[k], k, t.longest[k].Round(100*time.Microsecond)))
	}
	return fmt.Sprintf("%s, by %v", strings.Join(parts, ", "), t.hosts)
}
