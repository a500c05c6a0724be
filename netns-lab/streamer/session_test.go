// SPDX-License-Identifier: Apache-2.0

package streamer

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/pion/rtp"

	"github.com/rehome-net/rehome/handoff"
)

// fakeLine is a connection on which nothing is said, and that an agent may have.
type fakeLine struct {
	where chan error // what Await returns, when it is known
}

func (*fakeLine) Read([]byte) (int, error)    { return 0, net.ErrClosed }
func (*fakeLine) Write(b []byte) (int, error) { return len(b), nil }
func (*fakeLine) BytesRead() uint64           { return 0 }
func (*fakeLine) BytesWritten() uint64        { return 0 }

func (l *fakeLine) Await(ctx context.Context) error {
	select {
	case err := <-l.where:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// client is a client's pair of ports.
type client struct {
	t    *testing.T
	rtp  *net.UDPConn
	at   netip.AddrPort
	next uint16
	seen int
}

func newClient(t *testing.T) *client {
	t.Helper()
	for range 50 { // until the port is even
		c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
		if err != nil {
			t.Fatal(err)
		}
		if at := c.LocalAddr().(*net.UDPAddr).AddrPort(); at.Port()%2 == 0 {
			t.Cleanup(func() { _ = c.Close() })
			return &client{t: t, rtp: c, at: at}
		}
		_ = c.Close()
	}
	t.Fatal("no even port")
	return nil
}

// hear reads n packets, which must come in order.
func (c *client) hear(n int) {
	c.t.Helper()
	b := make([]byte, maxDatagram)
	for range n {
		_ = c.rtp.SetReadDeadline(time.Now().Add(10 * time.Second))
		k, err := c.rtp.Read(b)
		if err != nil {
			c.t.Fatal(err)
		}
		var p rtp.Packet
		if err := p.Unmarshal(b[:k]); err != nil {
			c.t.Fatal(err)
		}
		if c.seen++; c.seen > 1 && p.SequenceNumber != c.next {
			c.t.Fatalf("packet %d, want %d", p.SequenceNumber, c.next)
		}
		if want := uint32(c.seen) * samples; p.Timestamp != want {
			c.t.Fatalf("timestamp %d, want %d", p.Timestamp, want)
		}
		c.next = p.SequenceNumber + 1
	}
}

// start starts a session that plays; the state of another one goes on.
func start(t *testing.T, state []byte, to, from netip.AddrPort) (*session, *fakeLine) {
	t.Helper()
	l := &fakeLine{where: make(chan error, 8)}
	s := &session{line: l, dial: Dial, log: slog.New(slog.DiscardHandler)}
	s.rec = record{Mode: playing, Client: to, Server: from, Sent: outgoing{Sequence: 65530, Timestamp: samples, Due: time.Now(), Report: time.Now().Add(time.Hour)}}
	if state != nil {
		var err error
		if s.rec, err = parseRecord(state); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.open(s.rec.Client, s.rec.Server); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	s.wg.Go(func() { s.send(ctx) })
	t.Cleanup(func() {
		cancel()
		s.close()
	})
	return s, l
}

// TestMediaMoves exports a session that plays and receives, tries in vain, and then goes on with it in another one: the client sees one stream, and
// all that it sends is counted, once.
func TestMediaMoves(t *testing.T) {
	c := newClient(t)
	from := freePorts(t, c.at.Addr())
	source, line := start(t, nil, c.at, from)
	c.hear(3)
	for i := range uint16(5) {
		b, err := (&rtp.Packet{Header: rtp.Header{Version: 2, SequenceNumber: i}}).Marshal()
		if err == nil {
			_, err = c.rtp.WriteToUDPAddrPort(b, from)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if _, err := source.export(t.Context()); err != nil { // reads what has come
		t.Fatal(err)
	}
	if n := source.rec.Received.RTP; n != 5 {
		t.Errorf("%d of 5 packets are in the record", n)
	}
	sent := source.rec.Sent.Packets
	time.Sleep(3 * interval) // nothing must happen meanwhile
	source.mu.Lock()
	if n := source.rec.Sent.Packets; n != sent {
		t.Errorf("%d packets were sent after the export", n-sent)
	}
	source.mu.Unlock()
	for range 3 { // whoever asks: the move has failed
		line.where <- nil
	}
	c.hear(4)
	for len(line.where) > 0 {
		<-line.where
	}
	state, err := source.export(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	target, _ := start(t, state, netip.AddrPort{}, netip.AddrPort{})
	for range 4 {
		line.where <- handoff.ErrMigrated
	}
	c.hear(5)
	source.close()
	target.mu.Lock()
	defer target.mu.Unlock()
	if r := target.rec.Received; r.RTP != 5 || r.Missing != 0 {
		t.Errorf("the target counts %+v", r)
	}
}

// freePorts returns an address whose port was free an instant ago, and is even.
func freePorts(t *testing.T, at netip.Addr) netip.AddrPort {
	t.Helper()
	for range 100 {
		c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(at, 0)))
		if err != nil {
			t.Fatal(err)
		}
		own := c.LocalAddr().(*net.UDPAddr).AddrPort()
		_ = c.Close()
		if own.Port()%2 == 0 && own.Port() < 65534 {
			return own
		}
	}
	t.Fatal("no port is free")
	return netip.AddrPort{}
}

// TestExportNotNow refuses while bytes have been read that the record does not have.
func TestExportNotNow(t *testing.T) {
	s := &session{line: &fakeLine{}, rec: record{Understood: 1}}
	if _, err := s.export(t.Context()); !errors.Is(err, handoff.ErrNotNow) {
		t.Errorf("%v", err)
	}
}
