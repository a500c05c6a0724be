// SPDX-License-Identifier: Apache-2.0

package scenario_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/dispatcher"
	netnslab "github.com/rehome-net/rehome/netns-lab"
	"github.com/rehome-net/rehome/netns-lab/scenario"
)

// Ports of the services of mannersBench.
const (
	webPort     = 80   // shop.example, nobody else
	securePort  = 443  // the same
	narrowPort  = 81   // at most narrowPeeks connections without a request
	fewPort     = 82   // at most fewLimit connections
	deadWeb     = 83   // served by nobody
	deadSecure  = 444  // served by nobody
	deadRaw     = 7001 // served by nobody
	peekTime    = 2 * time.Second
	narrowPeeks = 10
	fewLimit    = 5
)

const (
	wholeRequest = "GET / HTTP/1.1\r\nHost: shop.example\r\n\r\n"
	halfRequest  = "GET / HTTP/1.1\r\nHost: shop.example\r\nX-Slow: "
)

// manners is a client of a dispatcher.
type manners struct {
	bench  *scenario.Bench
	client *netnslab.Host
}

func mannersBench(t *testing.T) *manners {
	t.Helper()
	pool := func(name, host string) dispatcher.PoolConfig {
		return dispatcher.PoolConfig{Name: name, Delivery: dispatcher.DeliveryUnmodified, Backends: []dispatcher.BackendConfig{{Host: host}}}
	}
	service := func(name string, port uint16, m dispatcher.Mode, l dispatcher.LimitsConfig) scenario.BenchService {
		l.PeekTime = peekTime
		return scenario.BenchService{Port: port, ServiceConfig: dispatcher.ServiceConfig{Name: name, Mode: m, Default: name, Limits: l}}
	}
	web := service("web", webPort, dispatcher.ModeHTTP, dispatcher.LimitsConfig{})
	web.Routes, web.Default = []dispatcher.RouteConfig{{Host: scenario.ShopName, Pool: "web"}}, ""
	secure := service("secure", securePort, dispatcher.ModeTLS, dispatcher.LimitsConfig{})
	secure.Routes, secure.Default = []dispatcher.RouteConfig{{SNI: scenario.ShopName, Pool: "secure"}}, ""
	b := bench(t, scenario.BenchConfig{
		Command: binary(t), Lab: labName("manners"),
		Services: []scenario.BenchService{
			web, secure,
			service("narrow", narrowPort, dispatcher.ModeHTTP, dispatcher.LimitsConfig{Peeking: narrowPeeks}),
			service("few", fewPort, dispatcher.ModeHTTP, dispatcher.LimitsConfig{Connections: fewLimit}),
			service("deadweb", deadWeb, dispatcher.ModeHTTP, dispatcher.LimitsConfig{}),
			service("deadsecure", deadSecure, dispatcher.ModeTLS, dispatcher.LimitsConfig{}),
			service("deadraw", deadRaw, dispatcher.ModeTCP, dispatcher.LimitsConfig{}),
		},
		Pools: []dispatcher.PoolConfig{
			pool("web", "b1"), pool("secure", "b1"), pool("narrow", "b1"), pool("few", "b1"),
			pool("deadweb", "b3"), pool("deadsecure", "b3"), pool("deadraw", "b3"),
		},
	})
	if err := b.KillAgent("b3"); err != nil {
		t.Fatal(err)
	}
	for _, port := range []uint16{webPort, narrowPort, fewPort} {
		ln, err := b.Host("b1").Listen(testContext(t, time.Minute), "tcp", fmt.Sprintf("[::]:%d", port))
		if err != nil {
			t.Fatal(err)
		}
		server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, "served\n")
		})}
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = server.Serve(ln)
		}()
		t.Cleanup(func() {
			_ = server.Close()
			<-done
		})
	}
	return &manners{bench: b, client: b.Host(scenario.ClientHost)}
}

func (m *manners) dial(port uint16, v6 bool) (*net.TCPConn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), exchangeTime)
	defer cancel()
	conn, err := m.client.Dial(ctx, "tcp", m.bench.Target(port, v6).String())
	if err != nil {
		return nil, err
	}
	return conn.(*net.TCPConn), conn.SetDeadline(time.Now().Add(exchangeTime))
}

// reply sends text to a service and returns all that comes until the end.
func (m *manners) reply(port uint16, v6 bool, text string) ([]byte, error) {
	conn, err := m.dial(port, v6)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, text); err != nil {
		return nil, err
	}
	return io.ReadAll(conn)
}

// ask asks a question and returns the status of the answer.
func ask(conn net.Conn) (int, error) {
	if _, err := io.WriteString(conn, wholeRequest); err != nil {
		return 0, err
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return 0, err
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, err
}

// metric returns one of the dispatcher's counts.
func (m *manners) metric(t *testing.T, name string) float64 {
	t.Helper()
	values, err := m.bench.Metrics(testContext(t, 5*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	return values[name]
}

// awaitMetric waits until a count is right.
func (m *manners) awaitMetric(t *testing.T, limit time.Duration, name string, want float64) {
	t.Helper()
	awaitTrue(t, limit, func() error {
		if got := m.metric(t, name); got != want {
			return fmt.Errorf("%s is %v, want %v", name, got, want)
		}
		return nil
	})
}

// TestDispatchManners checks what clients are told that cannot, or must not, be served.
func TestDispatchManners(t *testing.T) {
	t.Parallel()
	m := mannersBench(t)
	m.awaitMetric(t, 5*time.Second, "backend_up{backend=b3}", 0)
	before, err := m.bench.Keeps(scenario.FrontHost)
	if err != nil {
		t.Fatal(err)
	}
	t.Run("nobody serves", m.nobodyServes)
	t.Run("answers", m.answers)
	t.Run("half-close", m.halfClosed)
	t.Run("peeking limit", m.peekingLimit)
	t.Run("connection limit", m.connectionLimit)
	t.Run("slow and silent", m.slowAndSilent)
	for _, s := range []string{"web", "secure", "narrow", "few", "deadweb", "deadsecure", "deadraw"} {
		m.awaitMetric(t, 5*time.Second, "peeking{service="+s+"}", 0)
	}
	awaitTrue(t, 5*time.Second, func() error {
		after, err := m.bench.Keeps(scenario.FrontHost)
		// Links to backends come and go.
		if err == nil && after.Descriptors > before.Descriptors+3 || after.Held > 0 {
			err = fmt.Errorf("the dispatcher keeps %+v, before %+v", after, before)
		}
		return err
	})
}

func (m *manners) nobodyServes(t *testing.T) {
	unserved := m.metric(t, "handoff_failures_total{result=unserved}")
	body := strings.Repeat("a body that nobody reads ", 64<<10/25)
	n := 0
	for _, v6 := range []bool{false, true} {
		for _, text := range []string{wholeRequest, "POST / HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 65536\r\n\r\n" + body} {
			answer, err := m.reply(deadWeb, v6, text)
			if err != nil || !bytes.HasPrefix(answer, []byte("HTTP/1.1 503 ")) {
				t.Errorf("v6=%v, %d bytes: %q %v", v6, len(text), answer, err)
			}
			n++
		}
		conn, err := m.dial(deadSecure, v6)
		if err != nil {
			t.Fatal(err)
		}
		err = tls.Client(conn, &tls.Config{ServerName: scenario.ShopName}).Handshake()
		if !isAlert(err, "internal error") {
			t.Errorf("v6=%v: TLS: %v", v6, err)
		}
		_ = conn.Close()
		if answer, err := m.reply(deadRaw, v6, "x"); !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, unix.EPIPE) {
			t.Errorf("v6=%v: tcp: %q %v", v6, answer, err)
		}
		n += 2
	}
	if got := m.metric(t, "handoff_failures_total{result=unserved}"); got != unserved+float64(n) {
		t.Errorf("%v connections are counted as unserved, want %d", got-unserved, n)
	}
}

// isAlert says whether an error is the other side's TLS alert.
func isAlert(err error, text string) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "remote error" && strings.Contains(op.Err.Error(), text)
}

func (m *manners) answers(t *testing.T) {
	long := strings.Repeat("x", 17<<10)
	for _, tt := range []struct {
		name, text, want string
		port             uint16
	}{
		{"served", strings.Replace(wholeRequest, "\r\n\r\n", "\r\nConnection: close\r\n\r\n", 1), "HTTP/1.1 200 ", webPort},
		{"unknown host", "GET / HTTP/1.1\r\nHost: other.example\r\n\r\n", "HTTP/1.1 404 ", webPort},
		{"no host", "GET / HTTP/1.1\r\n\r\n", "HTTP/1.1 400 ", webPort},
		{"two hosts", "GET / HTTP/1.1\r\nHost: shop.example\r\nHost: other.example\r\n\r\n", "HTTP/1.1 400 ", webPort},
		{"no version", "GET /\r\n\r\n", "HTTP/1.1 400 ", webPort},
		{"binary", "\x00\x01\x02\x03\r\n\r\n", "HTTP/1.1 400 ", webPort},
		{"long path", "GET /" + long + " HTTP/1.1\r\nHost: shop.example\r\n\r\n", "HTTP/1.1 431 ", webPort},
		{"long field", "GET / HTTP/1.1\r\nHost: shop.example\r\nX: " + long + "\r\n\r\n", "HTTP/1.1 431 ", webPort},
		{"long, and more", "GET / HTTP/1.1\r\nHost: shop.example\r\nX: " + strings.Repeat(long, 16) + "\r\n\r\n", "HTTP/1.1 431 ", webPort},
		{"http for tls", wholeRequest, "HTTP/1.1 400 ", securePort},
		{"tls for http", "\x16\x03\x01\x00\x05\x01\x00\x00\x01\x03", "\x15\x03\x01\x00\x02\x02\x0a", webPort},
	} {
		t.Run(tt.name, func(t *testing.T) {
			answer, err := m.reply(tt.port, false, tt.text)
			if err != nil || !strings.HasPrefix(string(answer), tt.want) {
				t.Errorf("%q %v, want %q", answer, err, tt.want)
			}
		})
	}
	conn, err := m.dial(securePort, true)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := tls.Client(conn, &tls.Config{ServerName: "other.example"}).Handshake(); !isAlert(err, "unrecognized name") {
		t.Errorf("unknown server name: %v", err)
	}
}

// halfClosed is about clients that will never send the rest of their request.
func (m *manners) halfClosed(t *testing.T) {
	for _, text := range []string{"", "G", halfRequest} {
		begin := time.Now()
		conn, err := m.dial(webPort, false)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(conn, text); err != nil {
			t.Error(err)
		}
		if err := conn.CloseWrite(); err != nil {
			t.Error(err)
		}
		answer, err := io.ReadAll(conn)
		took := time.Since(begin)
		if err != nil && !errors.Is(err, unix.ECONNRESET) || took > peekTime/2 {
			t.Errorf("%q: %q %v after %v", text, answer, err, took)
		}
		if text != "" && !bytes.HasPrefix(answer, []byte("HTTP/1.1 400 ")) {
			t.Errorf("%q: %q", text, answer)
		}
		_ = conn.Close()
	}
	m.awaitMetric(t, 3*time.Second, "peeking{service=web}", 0)
}

// peekingLimit fills the slots of a service and frees one.
func (m *manners) peekingLimit(t *testing.T) {
	var waiting []*net.TCPConn
	defer func() {
		for _, c := range waiting {
			_ = c.Close()
		}
	}()
	for range narrowPeeks {
		c, err := m.dial(narrowPort, false)
		if err != nil {
			t.Fatal(err)
		}
		waiting = append(waiting, c)
		if _, err := io.WriteString(c, halfRequest); err != nil {
			t.Fatal(err)
		}
	}
	m.awaitMetric(t, time.Second, "peeking{service=narrow}", narrowPeeks)
	if answer, err := m.reply(narrowPort, false, wholeRequest); !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, unix.EPIPE) {
		t.Errorf("one too many: %q %v", answer, err)
	}
	if n := m.metric(t, "crowded_total"); n != 1 {
		t.Errorf("%v connections are counted as too many", n)
	}
	_ = waiting[0].Close()
	m.awaitMetric(t, time.Second, "peeking{service=narrow}", narrowPeeks-1)
	c, err := m.dial(narrowPort, false)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if status, err := ask(c); status != http.StatusOK || err != nil {
		t.Errorf("in the freed slot: %d %v", status, err)
	}
	if status, err := finish(waiting[1]); status != http.StatusOK || err != nil {
		t.Errorf("one that waited: %d %v", status, err)
	}
}

// finish sends the rest of a half request.
func finish(conn net.Conn) (int, error) {
	if _, err := io.WriteString(conn, "no\r\n\r\n"); err != nil {
		return 0, err
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return 0, err
	}
	return resp.StatusCode, nil
}

// connectionLimit fills a service and frees a place.
func (m *manners) connectionLimit(t *testing.T) {
	var open []*net.TCPConn
	defer func() {
		for _, c := range open {
			_ = c.Close()
		}
	}()
	for round := range 3 {
		for len(open) < fewLimit {
			c, err := m.dial(fewPort, false)
			if err != nil {
				t.Fatal(err)
			}
			open = append(open, c)
			if status, err := ask(c); status != http.StatusOK || err != nil {
				t.Fatalf("round %d, connection %d: %d %v", round, len(open), status, err)
			}
		}
		// The server may answer before the dispatcher has heard that it has the connection.
		m.awaitMetric(t, time.Second, "service_active{service=few}", fewLimit)
		answer, err := m.reply(fewPort, false, wholeRequest)
		if err != nil || !bytes.HasPrefix(answer, []byte("HTTP/1.1 503 ")) {
			t.Errorf("one too many: %q %v", answer, err)
		}
		for _, c := range open[2:] {
			_ = c.Close()
		}
		open = open[:2]
		m.awaitMetric(t, 5*time.Second, "service_active{service=few}", 2)
	}
}

// slowAndSilent has many clients that send a byte a second, and one that says nothing, while others are served.
func (m *manners) slowAndSilent(t *testing.T) {
	const slow = 1000
	quiet := m.times(t, 200)
	silent := make(chan error, 1)
	go func() { silent <- m.silence() }()
	before := m.metric(t, "slow_total")
	ended := make(chan error, slow)
	begin := time.Now()
	for range slow {
		go func() { ended <- m.trickle() }()
	}
	m.awaitMetric(t, peekTime, "peeking{service=web}", slow)
	busy := m.times(t, 200)
	if n := m.metric(t, "peeking{service=web}"); n != slow {
		t.Errorf("%v connections are peeked at after %v, want %d: the measurement came too late", n, time.Since(begin), slow)
	}
	t.Logf("answers: median %v, p99 %v; with %d slow clients median %v, p99 %v", quiet[100], quiet[198], slow, busy[100], busy[198])
	// The slow ones take processor time on this machine, too.
	if limit := 4*quiet[100] + 2*time.Millisecond; busy[100] > limit {
		t.Errorf("the median with slow clients is %v, want %v at most", busy[100], limit)
	}
	if busy[199] > 250*time.Millisecond {
		t.Errorf("somebody waited %v", busy[199])
	}
	for range slow {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	if n := m.metric(t, "slow_total") - before; n < slow || n > slow+1 {
		t.Errorf("%v connections are counted as slow, want %d", n, slow)
	}
	if err := <-silent; err != nil {
		t.Error(err)
	}
}

// times returns how long answers take, sorted; each has a connection of its own.
func (m *manners) times(t *testing.T, n int) []time.Duration {
	t.Helper()
	var list []time.Duration
	for range n {
		c, err := m.dial(webPort, false)
		if err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		status, err := ask(c)
		list = append(list, time.Since(begin))
		_ = c.Close()
		if status != http.StatusOK || err != nil {
			t.Fatalf("%d %v", status, err)
		}
	}
	slices.Sort(list)
	return list
}

// trickle sends a byte a second until it is told to stop.
func (m *manners) trickle() error {
	c, err := m.dial(webPort, false)
	if err != nil {
		return err
	}
	defer c.Close()
	begin := time.Now()
	if _, err := io.WriteString(c, halfRequest); err != nil {
		return err
	}
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				_, _ = io.WriteString(c, "x")
			case <-stop:
				return
			}
		}
	}()
	answer, err := io.ReadAll(c)
	took := time.Since(begin)
	if !bytes.HasPrefix(answer, []byte("HTTP/1.1 408 ")) || err != nil || took > peekTime+2*time.Second {
		return fmt.Errorf("a slow client: %q %s after %v", answer, fmt.Sprint(err), took)
	}
	return nil
}

// silence connects and says nothing: the kernel keeps such a connection to itself for as long as a request may take, and
// the dispatcher as long again.
func (m *manners) silence() error {
	c, err := m.dial(webPort, false)
	if err != nil {
		return err
	}
	defer c.Close()
	begin := time.Now()
	_ = c.SetDeadline(begin.Add(5 * peekTime))
	answer, err := io.ReadAll(c)
	if !errors.Is(err, unix.ECONNRESET) || len(answer) != 0 {
		return fmt.Errorf("a silent client: %q %s after %v", answer, fmt.Sprint(err), time.Since(begin))
	}
	return nil
}
