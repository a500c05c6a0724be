// SPDX-License-Identifier: Apache-2.0

package scenario_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/dispatcher"
	netnslab "github.com/rehome-net/rehome/netns-lab"
	"github.com/rehome-net/rehome/netns-lab/scenario"
)

func matrixModes() []dispatcher.Mode {
	return []dispatcher.Mode{dispatcher.ModeHTTP, dispatcher.ModeTCP}
}

// matrixHosts are the backends of every pool.
func matrixHosts() []string { return []string{scenario.LinkedHost, scenario.NginxHost} }

// deliverySocketless is delivery to an unmodified server without a socket at the dispatcher.
const deliverySocketless dispatcher.Delivery = "socketless"

// matrixPorts returns the port of each delivery.
func matrixPorts(m dispatcher.Mode) map[dispatcher.Delivery]uint16 {
	first := uint16(8001)
	if m == dispatcher.ModeTCP {
		first = 9001
	}
	return map[dispatcher.Delivery]uint16{
		dispatcher.DeliveryLinked: first, dispatcher.DeliveryFD: first + 1, dispatcher.DeliveryUnmodified: first + 2,
		deliverySocketless: first + 3,
	}
}

func matrixPool(d dispatcher.Delivery, m dispatcher.Mode) string { return fmt.Sprintf("%s-%s", d, m) }

// matrixBench stands up a dispatcher with all deliveries in modes http and tcp, and servers in this process.
func matrixBench(t *testing.T, kind string) (*scenario.Bench, *matrixServers) {
	t.Helper()
	return matrixBenchOf(t, scenario.BenchConfig{Command: binary(t), Lab: labName(kind)},
		dispatcher.DeliveryLinked, dispatcher.DeliveryFD, dispatcher.DeliveryUnmodified, deliverySocketless)
}

// matrixBenchOf does so with some deliveries, beside what the configuration has.
func matrixBenchOf(t *testing.T, cfg scenario.BenchConfig, deliveries ...dispatcher.Delivery) (*scenario.Bench, *matrixServers) {
	t.Helper()
	for _, m := range matrixModes() {
		for d, port := range matrixPorts(m) {
			if !slices.Contains(deliveries, d) {
				continue
			}
			pool := dispatcher.PoolConfig{Name: matrixPool(d, m), Delivery: d}
			if d == deliverySocketless {
				pool.Delivery = dispatcher.DeliveryUnmodified
			}
			for _, host := range matrixHosts() {
				b := dispatcher.BackendConfig{Host: host}
				if d == dispatcher.DeliveryFD {
					b.Socket = scenario.ClusterDir(cfg.Lab) + "/" + host + "/fd.sock"
				}
				pool.Backends = append(pool.Backends, b)
			}
			cfg.Pools = append(cfg.Pools, pool)
			cfg.Services = append(cfg.Services, scenario.BenchService{
				Port: port, ServiceConfig: dispatcher.ServiceConfig{
					Name: pool.Name, Mode: m, Default: pool.Name, Socketless: d == deliverySocketless,
				},
			})
		}
	}
	b := bench(t, cfg)
	s := &matrixServers{tb: t}
	t.Cleanup(s.group.Wait)
	for _, host := range matrixHosts() {
		if err := s.listen(testContext(t, time.Minute), b, host); err != nil {
			t.Fatal(err)
		}
	}
	awaitApplications(t, b, matrixHosts()...)
	return b, s
}

// bench stands a bench up, and takes it down when the test ends.
func bench(t *testing.T, cfg scenario.BenchConfig) *scenario.Bench {
	t.Helper()
	b, err := scenario.StartBench(testContext(t, time.Minute), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("front:\n%s", tail(b.Path(scenario.FrontHost, "dispatcher.log")))
			for _, host := range b.Servers() {
				t.Logf("%s:\n%s", host, tail(b.Path(host, "agent.log")))
			}
		}
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		checkGone(t, cfg.Lab)
	})
	return b
}

// awaitApplications waits until every linked service of the hosts has an application.
func awaitApplications(t *testing.T, b *scenario.Bench, hosts ...string) {
	t.Helper()
	for _, host := range hosts {
		awaitTrue(t, 10*time.Second, func() error {
			st, err := b.Status(testContext(t, 5*time.Second), host)
			if err != nil {
				return err
			}
			for _, s := range st.GetServices() {
				if strings.HasPrefix(s.GetName(), string(dispatcher.DeliveryLinked)) && s.GetApplications() == 0 {
					return fmt.Errorf("%s: %s has no application", host, s.GetName())
				}
			}
			return nil
		})
	}
}

// awaitTrue waits until ready returns nil.
func awaitTrue(t testing.TB, limit time.Duration, ready func() error) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for {
		err := ready()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %v: %v", limit, err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// options are the TCP options that a client's host agrees to.
type options struct {
	name                    string
	timestamps, sack, scale bool
}

func allOptions() []options {
	return []options{
		{"all", true, true, true},
		{"no-timestamps", false, true, true},
		{"no-sack", true, false, true},
		{"no-scaling", true, true, false},
		{"none", false, false, false},
	}
}

func (o options) set(h *netnslab.Host) error {
	var errs []error
	for key, on := range map[string]bool{"tcp_timestamps": o.timestamps, "tcp_sack": o.sack, "tcp_window_scaling": o.scale} {
		errs = append(errs, h.SetSysctl("net.ipv4."+key, map[bool]string{true: "1", false: "0"}[on]))
	}
	return errors.Join(errs...)
}

// check says whether a client's connection has these options.
func (o options) check(info *unix.TCPInfo) error {
	const timestamps, sack, scale = 1, 2, 4 // TCPI_OPT_* of linux/tcp.h
	got := options{o.name, info.Options&timestamps != 0, info.Options&sack != 0, info.Options&scale != 0}
	if got != o {
		return fmt.Errorf("negotiated %+v, want %+v", got, o)
	}
	return nil
}

// segmentSize is the client's largest segment.
func (o options) segmentSize(v6 bool) int {
	size := 1460
	if v6 {
		size -= 20
	}
	if o.timestamps {
		size -= 12
	}
	return size
}

// combination is one connection of the matrix.
type combination struct {
	delivery dispatcher.Delivery
	mode     dispatcher.Mode
	v6       bool
	options  options
	// size of the first request; segment is replaced by the size of a segment.
	size  int
	shape string
}

const segment = -1

// What a client does.
const (
	plain     = "plain"
	pipelined = "pipelined"  // a second request in the same write
	halfClose = "half-close" // right after the request
	later     = "later"      // a second request some milliseconds later, whatever the answer does
	looping   = "looping"    // a second request at once, in small pieces
	split     = "split"      // the first byte comes alone
)

func (c combination) String() string {
	return fmt.Sprintf("%s/%s/v6=%v/%s/%d/%s", c.delivery, c.mode, c.v6, c.options.name, c.size, c.shape)
}

// combinations are all that make sense. A request that can be read takes more than one byte.
func combinations() []combination {
	var list []combination
	for _, o := range allOptions() {
		for _, d := range []dispatcher.Delivery{dispatcher.DeliveryLinked, dispatcher.DeliveryFD, dispatcher.DeliveryUnmodified, deliverySocketless} {
			for _, m := range matrixModes() {
				for _, v6 := range []bool{false, true} {
					for _, size := range []int{1, 100, segment, 4 << 10, 16 << 10, 64 << 10} {
						for _, shape := range []string{plain, pipelined, halfClose, later, looping, split} {
							if size != 1 || m == dispatcher.ModeTCP && shape != split {
								list = append(list, combination{d, m, v6, o, size, shape})
							}
						}
					}
				}
			}
		}
	}
	return list
}

// exchange lays down what is said.
func (c combination) exchange(local netip.AddrPort) *exchange {
	size := c.size
	if size == segment {
		size = c.options.segmentSize(c.v6)
	}
	var first []byte
	if c.mode == dispatcher.ModeHTTP {
		first = []byte("POST /matrix HTTP/1.1\r\nHost: shop.example\r\n\r\n")
	}
	first = append(first, rampBytes(17, size-len(first))...)
	x := &exchange{
		messages: [][]byte{first}, answers: [][]byte{rampBytes(100, 5000)}, halfClose: c.shape == halfClose, local: local,
		served: make(chan serving, 2),
	}
	if c.shape == pipelined || c.shape == later || c.shape == looping {
		x.messages, x.answers = append(x.messages, rampBytes(200, 3000)), append(x.answers, rampBytes(50, 700))
	}
	return x
}

// send is the client's first half.
func (c combination) send(conn *net.TCPConn, x *exchange) error {
	first, second := x.messages[0], []byte(nil)
	if len(x.messages) > 1 {
		second = x.messages[1]
	}
	parts := [][]byte{first}
	switch c.shape {
	case pipelined:
		parts = [][]byte{slices.Concat(first, second)}
	case later, split:
		if parts = append(parts, second); c.shape == split {
			parts = [][]byte{first[:1], first[1:]}
		}
	case looping:
		parts = append(parts, slices.Collect(slices.Chunk(second, 50))...)
	}
	for i, p := range parts {
		if i == 1 && c.shape != looping {
			time.Sleep(3 * time.Millisecond) // a client that is in no hurry
		}
		if _, err := conn.Write(p); err != nil {
			return err
		}
	}
	if x.halfClose {
		return conn.CloseWrite()
	}
	return nil
}

// matrix runs combinations.
type matrix struct {
	bench   *scenario.Bench
	servers *matrixServers
	client  *netnslab.Host
	port    atomic.Uint32
	byHost  sync.Map // host to *atomic.Int64
}

// dial connects from an address of its own to the service, and registers the exchange before the server can have the connection.
func (m *matrix) dial(ctx context.Context, to netip.AddrPort, x *exchange) (*net.TCPConn, error) {
	from := m.client.Addr4()
	if to.Addr().Is6() {
		from = m.client.Addr6()
	}
	local := netip.AddrPortFrom(from, uint16(m.port.Add(1)))
	if x != nil {
		m.servers.known.Store(local, x)
	}
	var conn net.Conn
	err := m.client.Do(func() (err error) {
		d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(local), Timeout: exchangeTime}
		d.SetMultipathTCP(false)
		conn, err = d.DialContext(ctx, "tcp", to.String())
		return err
	})
	if err != nil {
		return nil, err
	}
	return conn.(*net.TCPConn), nil
}

// run runs one combination.
func (m *matrix) run(ctx context.Context, c combination) error {
	to := m.bench.Target(matrixPorts(c.mode)[c.delivery], c.v6)
	x := c.exchange(to)
	conn, err := m.dial(ctx, to, x)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(exchangeTime)); err != nil {
		return err
	}
	if err := c.send(conn, x); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	for i, a := range x.answers {
		if err := same(conn, a); err != nil {
			return fmt.Errorf("answer %d: %w%s", i, err, x.whatServerSays())
		}
	}
	if x.halfClose {
		if err := nothingMore(conn); err != nil {
			return err
		}
	}
	disturbed := m.undisturbed(conn, c)
	if err := conn.CloseWrite(); err != nil && !x.halfClose {
		return err
	}
	select {
	case s := <-x.served:
		n, _ := m.byHost.LoadOrStore(s.host, new(atomic.Int64))
		n.(*atomic.Int64).Add(1)
		if s.err != nil {
			return fmt.Errorf("server on %s: %w", s.host, s.err)
		}
	case <-time.After(exchangeTime):
		return errors.New("the server has not come to an end")
	}
	return disturbed
}

func (x *exchange) whatServerSays() string {
	select {
	case s := <-x.served:
		return fmt.Sprintf("; the server on %s: %v", s.host, s.err)
	default:
		return ""
	}
}

// errDisturbed means that a client has got everything, but has seen that something was going on.
var errDisturbed = errors.New("the client has sent again what was not lost")

// undisturbed says whether the client's kernel has noticed anything.
func (m *matrix) undisturbed(conn *net.TCPConn, c combination) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var info *unix.TCPInfo
	var infoErr error
	if err := raw.Control(func(fd uintptr) { info, infoErr = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) }); err != nil {
		return err
	}
	if infoErr != nil {
		return infoErr
	}
	if info.Total_retrans != 0 || info.Dsack_dups != 0 || info.Total_rto != 0 {
		return fmt.Errorf("%w: %d retransmissions, %d timeouts, %d duplicates", errDisturbed, info.Total_retrans, info.Total_rto, info.Dsack_dups)
	}
	want := c.options
	if c.delivery == deliverySocketless && !want.timestamps {
		want = options{name: want.name} // a cookie has no room for them elsewhere (package cookie)
	}
	return want.check(info)
}

// TestDispatchMatrix hands off every combination, some at the same time, in a random order.
func TestDispatchMatrix(t *testing.T) {
	t.Parallel()
	const seed, clients, rounds = 1, 8, 3
	b, servers := matrixBench(t, "matrix")
	m := &matrix{bench: b, servers: servers, client: b.Host(scenario.ClientHost)}
	m.port.Store(10000)
	// What is not lost is not to be sent again only because the machine is busy: no tail loss probes, and patient timers (Linux 6.11).
	for key, value := range map[string]string{"tcp_early_retrans": "0", "tcp_rto_min_us": "3000000"} {
		if err := m.client.SetSysctl("net.ipv4."+key, value); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
	ctx := testContext(t, 90*time.Second)
	all := slices.Repeat(combinations(), rounds)
	rand.New(rand.NewPCG(seed, 0)).Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	begin := time.Now()
	var disturbed, overtaken atomic.Int64
	for _, o := range allOptions() {
		if err := o.set(m.client); err != nil {
			t.Fatal(err)
		}
		work := make(chan combination)
		var group sync.WaitGroup
		for range clients {
			group.Go(func() {
				for c := range work {
					switch err := m.run(ctx, c); {
					case err != nil && !errors.Is(err, errDisturbed):
						t.Errorf("%v: %v", c, err)
					case err != nil && c.delivery == deliverySocketless:
						overtaken.Add(1)
					case err != nil:
						disturbed.Add(1)
						t.Logf("%v: %v", c, err)
					}
				}
			})
		}
		for _, c := range all {
			if c.options == o {
				work <- c
			}
		}
		close(work)
		group.Wait()
	}
	t.Logf("%d combinations, %d times each, in %v", len(all)/rounds, rounds, time.Since(begin))
	// Where one processor is so busy that the kernel puts off what it has queued there, a veth can change the order of packets.
	if n, most := int(disturbed.Load()), len(all)/1000; n > most {
		t.Errorf("%d of %d clients: %v; %d at most may be the machine's doing", n, len(all), errDisturbed, most)
	}
	// Without a socket nothing holds packets while the path is switched: of a client that sends within those microseconds one can overtake
	// another, and the client repeats what it need not (package synproxy).
	if n, most := int(overtaken.Load()), len(all)/100; n > most {
		t.Errorf("%d of %d clients: %v; %d at most may have sent just then", n, len(all), errDisturbed, most)
	}
	m.checkCounts(t, all)
}

// checkCounts compares what the dispatcher counts with what was done.
func (m *matrix) checkCounts(t *testing.T, all []combination) {
	t.Helper()
	values, err := m.bench.Metrics(testContext(t, 5*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	want := make(map[dispatcher.Delivery]float64)
	for _, c := range all {
		if c.delivery == deliverySocketless {
			c.delivery = dispatcher.DeliveryUnmodified
		}
		want[c.delivery]++
	}
	for d, n := range want {
		if got := values[fmt.Sprintf("handoffs_total{delivery=%s}", d)]; got != n {
			t.Errorf("%v handoffs by %s, want %v", got, d, n)
		}
	}
	for name, v := range values {
		if strings.HasPrefix(name, "handoff_failures_total") && v != 0 || name == "relayed_bytes_total" && v != 0 {
			t.Errorf("%s: %v", name, v)
		}
	}
	for _, host := range matrixHosts() {
		n, ok := m.byHost.Load(host)
		if !ok || int(n.(*atomic.Int64).Load()) < len(all)/4 {
			t.Errorf("%s has not had its share", host)
		}
	}
}
