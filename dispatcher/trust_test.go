// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/dispatcher/availability"
	"github.com/rehome-net/rehome/dispatcher/session/inspect"
	"github.com/rehome-net/rehome/handoff/peer"
	"github.com/rehome-net/rehome/handoff/vitals"
	"github.com/rehome-net/rehome/handoff/wire"
	"github.com/rehome-net/rehome/tcprepair"
)

// trusted runs the parts of a dispatcher that others can talk to.
func trusted(t *testing.T) (d *Dispatcher, agents string) {
	t.Helper()
	// Nobody is found silent while the test lasts.
	d, _ = managed(t, func(cfg *Config) { cfg.Reports.Interval = 10 * time.Second })
	d.self = peer.Self{Host: "front"}
	var err error
	if d.sessions, err = newSessions(d, newMemoryPath()); err != nil {
		t.Fatal(err)
	}
	if err := d.sessions.handle(d.live.Load(), nil); err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d.management.watch(d.live.Load())
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 2)
	go func() { done <- d.management.monitor.Run(ctx) }()
	go func() { done <- d.servePeers(ctx, ln) }()
	t.Cleanup(func() {
		cancel()
		for range 2 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	})
	return d, ln.Addr().String()
}

// counted returns what the dispatcher tells Prometheus of others' messages, without zeros.
func counted(t *testing.T, d *Dispatcher) []string {
	t.Helper()
	families, err := d.count.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range families {
		name := strings.TrimPrefix(f.GetName(), "rehome_dispatcher_")
		if !slices.Contains([]string{"heartbeats_total", "load_vectors_total", "peers_refused_total"}, name) && !strings.HasPrefix(name, "reports_") && !strings.HasPrefix(name, "gateway") {
			continue
		}
		for _, m := range f.GetMetric() {
			if v := m.GetCounter().GetValue() + m.GetGauge().GetValue(); v != 0 {
				for _, l := range m.GetLabel() {
					name += " " + l.GetValue()
				}
				got = append(got, fmt.Sprint(name, " ", v))
				name, _, _ = strings.Cut(name, " ")
			}
		}
	}
	return got
}

// awaitCounted waits until that is all.
func awaitCounted(t *testing.T, d *Dispatcher, want ...string) {
	t.Helper()
	slices.Sort(want)
	var got []string
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if got = counted(t, d); slices.Equal(got, want) {
			return
		}
	}
	t.Fatalf("(-want +got):\n%s", cmp.Diff(want, got))
}

// TestForgedReports: a forged heartbeat and a replayed load vector are refused and counted, and change nothing.
func TestForgedReports(t *testing.T) {
	d, _ := trusted(t)
	conn, err := net.Dial("udp", d.management.monitor.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close() //nolint:errcheck // nothing was written that matters
	sealer, err := vitals.NewSealer(vitals.Key{ID: 1, Secret: bytes.Repeat([]byte{0xab}, 32)})
	if err != nil {
		t.Fatal(err)
	}
	send := func(b []byte) {
		if _, err := conn.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	node := d.backend("b1").node
	full := vitals.Vector{Host: uint32(node), Interval: time.Minute}
	for p := range full.Shares {
		full.Shares[p] = vitals.ShareOf(0.5)
	}
	good, vector := sealer.Append(nil, vitals.Heartbeat{Host: uint32(node), Flag: vitals.Available}, time.Now()), sealer.Append(nil, full, time.Now())
	send(good)
	send(vector)
	awaitCounted(t, d, "heartbeats_total 1", "load_vectors_total 1")
	forged := bytes.Clone(sealer.Append(nil, vitals.Heartbeat{Host: uint32(node), Flag: vitals.Available}, time.Now()))
	forged[6] = byte(vitals.ApplicationDown)
	send(forged)
	send(vector)
	send(vector)
	send(good)
	awaitCounted(t, d, "heartbeats_total 1", "load_vectors_total 1", "reports_refused_total forged 1", "reports_refused_total replayed 3")
	if v := d.management.of(node); v.state != availability.Up || v.report != 1 {
		t.Errorf("b1 is %v after %d reports, want what it was", v.state, v.report)
	}
}

// TestSpoofedGateway: what a gateway says is taken from a gateway only. Who calls itself something else is refused at the door; what a backend says
// in a gateway's words, or a gateway in a backend's, ends the connection; what it says of flows that nobody has announces nothing.
func TestSpoofedGateway(t *testing.T) {
	d, at := trusted(t)
	k := tcpKey(stranger, 1000, 554)
	half := inspect.Half{
		Protocol: inspect.RTSP, Side: inspect.Server, Flow: k, Session: "1", Status: 200,
		Streams: []inspect.Stream{{Transport: inspect.RTP, RTP: vip(8000), RTCP: vip(8001)}},
	}
	encoded, err := half.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	said := &wire.Halves{Flow: tcprepair.NewFlow(k.Server, k.Client), Protocol: unix.IPPROTO_TCP, Halves: [][]byte{encoded}}
	as := func(host string) *wire.Link {
		link, err := peer.Self{Host: host}.Dial(t.Context(), "front", at)
		if err != nil {
			return nil
		}
		t.Cleanup(func() { _ = link.Close() })
		return link
	}
	if link := as("mallory"); link != nil {
		_ = link.Send(0, &wire.GatewayHello{}) // it may have been closed already
		if _, _, err := link.Receive(); err == nil {
			t.Error("a stranger is answered")
		}
	}
	awaitCounted(t, d, "peers_refused_total 1")
	if link := as("b1"); link != nil {
		_ = link.Send(1, said)
		if f, _, err := link.Receive(); err == nil {
			t.Errorf("a backend that speaks for the gateway is answered: %+v", f.Message)
		}
	}
	gw := as("gw")
	if gw == nil {
		t.Fatal("the gateway is refused")
	}
	ask := func(id uint64, m wire.Message) wire.Message {
		if err := gw.Send(id, m); err != nil {
			t.Fatal(err)
		}
		f, _, err := gw.Receive()
		if err != nil {
			t.Fatal(err)
		}
		return f.Message
	}
	ask(0, &wire.GatewayHello{})
	if m, ok := ask(1, said).(*wire.Refuse); !ok {
		t.Errorf("what is said on a flow of nobody's is answered %+v", m)
	}
	awaitCounted(t, d, "peers_refused_total 1", "gateways 1", "gateway_reports_rejected_total 1")
	// As a gateway it may not move a flow.
	if err := gw.Send(2, &wire.Commit{Flow: said.Flow, Epoch: 1}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := gw.Receive(); err == nil {
		t.Error("a gateway that speaks as a backend is answered")
	}
	awaitCounted(t, d, "peers_refused_total 1", "gateway_reports_rejected_total 1", "gateway_messages_refused_total 1")
	if n := len(d.sessions.path.(*memoryPath).announced); n != 0 { //nolint:forcetypeassert // trusted has made it
		t.Errorf("%d flows are announced", n)
	}
}
