// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/tcprepair"
)

const (
	both = gate.Ingress | gate.Egress
	long = time.Minute
)

// silence fails the test if something arrives.
func silence(t *testing.T, c net.Conn) {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Read(make([]byte, 1)); n != 0 || !errors.Is(err, context.DeadlineExceeded) && !isTimeout(err) {
		t.Fatalf("%d bytes, %v: want silence", n, err)
	}
}

func isTimeout(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}

// arrives reads as much as text has and compares; the sender may have to send it again.
func arrives(t *testing.T, c net.Conn, text string) {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != text {
		t.Fatalf("read %q, %v, want %q", got, err, text)
	}
}

func write(t *testing.T, c net.Conn, text string) {
	t.Helper()
	if _, err := c.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
}

// What comes for a held flow is dropped and counted; another flow of the service goes on; after the release the client's kernel sends it again.
func TestHold(t *testing.T) {
	r := newRig(t)
	g := r.open(t, Config{})
	r.configure(t, g)
	for i, vip := range r.vips {
		client, server := r.connect(t, vip, netip.AddrPort{})
		other, there := r.connect(t, vip, netip.AddrPort{})
		flow := flowOf(client)
		for range 2 { // the second renews it
			if err := g.Hold(flow, gate.Ingress, long); err != nil {
				t.Fatal(err)
			}
		}
		write(t, client, "held")
		silence(t, server)
		exchange(t, other, there, "not held")
		if s := g.Stats(); s.Held == 0 || s.Holds != 1 {
			t.Errorf("%+v: want a packet held, and one hold", s)
		}
		end := g.Unhold
		if i == 0 {
			end = func(f tcprepair.Flow) error {
				_, err := g.Release(f)
				return err
			}
		}
		if err := end(flow); err != nil {
			t.Fatal(err)
		}
		arrives(t, server, "held")
		exchange(t, client, server, "as before")
		if err := g.Unhold(flow); !errors.Is(err, gate.ErrNoFlow) {
			t.Errorf("Unhold of what is not held: %v", err)
		}
	}
}

// At an entry a frozen socket keeps what comes, and the client does not hear of it; at a server it is dropped.
func TestHoldBoth(t *testing.T) {
	r := newRig(t)
	for _, server := range []bool{false, true} {
		g := r.open(t, Config{Server: server, Table: fmt.Sprintf("rehome-%v", server)})
		for _, vip := range r.vips {
			client, here := r.connect(t, vip, netip.AddrPort{})
			flow := flowOf(client)
			if err := g.Hold(flow, both, long); err != nil {
				t.Fatal(err)
			}
			write(t, client, "while frozen")
			if server {
				silence(t, here)
			} else {
				arrives(t, here, "while frozen")
			}
			if s := g.Stats(); s.Held == 0 && server || s.Suppressed == 0 && !server {
				t.Errorf("server %v: %+v", server, s)
			}
			if err := g.Unhold(flow); err != nil {
				t.Fatal(err)
			}
			if server {
				arrives(t, here, "while frozen")
			}
			exchange(t, client, here, "as before")
		}
		if err := g.Remove(); err != nil {
			t.Fatal(err)
		}
	}
}

// The kernel ends a hold by itself, and one that is renewed later.
func TestHoldDeadline(t *testing.T) {
	r := newRig(t)
	g := r.open(t, Config{})
	r.configure(t, g)
	client, server := r.connect(t, r.vips[0], netip.AddrPort{})
	flow := flowOf(client)
	const ttl = 300 * time.Millisecond
	begin := time.Now()
	if err := g.Hold(flow, gate.Ingress, ttl); err != nil {
		t.Fatal(err)
	}
	if err := g.Hold(flow, gate.Ingress, 2*ttl); err != nil {
		t.Fatal(err)
	}
	write(t, client, "waits")
	arrives(t, server, "waits")
	if took := time.Since(begin); took < 2*ttl {
		t.Errorf("it came after %v: the renewed hold is %v", took, 2*ttl)
	}
	// Run finds out, too.
	if err := g.tend(time.Now(), false); err != nil {
		t.Fatal(err)
	}
	if s := g.Stats(); s.Lapsed != 1 || s.Holds != 0 {
		t.Errorf("%+v: want one lapsed hold, and none now", s)
	}
	// What has lapsed can be ended all the same.
	if err := g.Hold(flow, gate.Ingress, time.Millisecond); err != nil {
		t.Fatal(err)
	}
	write(t, client, "again")
	arrives(t, server, "again")
	if _, err := g.Release(flow); err != nil {
		t.Errorf("Release of a lapsed hold: %v", err)
	}
	exchange(t, client, server, "both ways")
}

// With Egress nothing that the host sends leaves, not even an acknowledgement; a hold gets a direction by holding again.
func TestMute(t *testing.T) {
	r := newRig(t)
	g := r.open(t, Config{Server: true})
	r.configure(t, g)
	for _, vip := range r.vips {
		client, server := r.connect(t, vip, netip.AddrPort{})
		other, there := r.connect(t, vip, netip.AddrPort{})
		flow := flowOf(client)
		for i, d := range []gate.Direction{gate.Egress, gate.Ingress} {
			if err := g.Hold(flow, d, long); err != nil {
				t.Fatal(err)
			}
			before := g.Stats()
			write(t, server, "muted ")
			silence(t, client)
			exchange(t, other, there, "another flow")
			if after := g.Stats(); i == 0 && after.Suppressed <= before.Suppressed {
				t.Errorf("%+v, then %+v: want packets suppressed", before, after)
			}
			write(t, client, "held ")
			if i == 0 {
				arrives(t, server, "held ")
			} else {
				silence(t, server)
			}
		}
		if err := g.Unhold(flow); err != nil {
			t.Fatal(err)
		}
		arrives(t, client, "muted muted ")
		arrives(t, server, "held ")
		exchange(t, client, server, "both ways")
	}
}

// A granted flow stays here until Settle, though another owner is recorded.
func TestGrant(t *testing.T) {
	r := newRig(t)
	g := r.open(t, Config{})
	r.configure(t, g)
	for _, vip := range r.vips {
		client, server := r.connect(t, vip, netip.AddrPort{})
		flow := flowOf(client)
		if err := g.Hold(flow, both, long); err != nil {
			t.Fatal(err)
		}
		there := moved(t, server, r.servers[0], func() {
			if got, err := g.Grant(flow, 1, 1); err != nil || got.Node != 1 || got.Epoch != 2 {
				t.Errorf("Grant: %+v, %v", got, err)
			}
		})
		write(t, client, "granted")
		silence(t, there)
		if got, err := g.Settle(flow, 3, 1); !errors.Is(err, gate.ErrEpoch) || got.Epoch != 2 || got.Node != 1 {
			t.Errorf("Settle of another epoch: %+v, %v", got, err)
		}
		if _, err := g.Settle(flow, 2, 2); !errors.Is(err, gate.ErrEpoch) {
			t.Errorf("Settle for another node: %v", err)
		}
		settled := time.Now()
		if _, err := g.Settle(flow, 2, 1); err != nil {
			t.Fatal(err)
		}
		arrives(t, there, "granted")
		exchange(t, client, there, "settled")
		if len(g.mutes) != 1 {
			t.Errorf("mute for %d flows, want 1", len(g.mutes))
		}
		for _, after := range []time.Duration{0, time.Second} {
			if err := g.unmute(time.Now().Add(after)); err != nil {
				t.Fatal(err)
			}
			left, err := g.elements(g.rules.of(vip.Addr().Is4()).muted)
			if want := after == 0; err != nil || (len(left) == 1) != want && time.Since(settled) < muteTime || len(left) != len(g.mutes) {
				t.Errorf("%v later: %d elements, %d flows, %v", after, len(left), len(g.mutes), err)
			}
		}
	}
	if s := g.Stats(); s.Forwarded == 0 || s.Flows != 2 {
		t.Errorf("%+v: want packets forwarded, and two flows", s)
	}
	if _, err := g.Settle(tcprepair.NewFlow(netip.MustParseAddrPort("192.0.2.1:1"), r.vips[0]), 2, 1); !errors.Is(err, gate.ErrNoFlow) {
		t.Errorf("Settle of an unknown flow: %v", err)
	}
}

// Who grants a flow and dies has promised it: its packets go to the owner when the hold is over, and the next process knows.
func TestGrantOutlivesProcess(t *testing.T) {
	r := newRig(t)
	g := r.open(t, Config{Keep: true})
	r.configure(t, g)
	client, server := r.connect(t, r.vips[0], netip.AddrPort{})
	flow := flowOf(client)
	if err := g.Hold(flow, both, 400*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	there := moved(t, server, r.servers[1], func() {
		if _, err := g.Grant(flow, 1, 2); err != nil {
			t.Error(err)
		}
	})
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	write(t, client, "promised")
	silence(t, there)
	next := r.open(t, Config{})
	if s := next.Stats(); s.Holds != 1 {
		t.Errorf("the next process knows of %d holds, want 1", s.Holds)
	}
	if got, err := next.Route(flow); err != nil || got.Node != 2 || got.Epoch != 2 {
		t.Errorf("Route: %+v, %v", got, err)
	}
	arrives(t, there, "promised")
	exchange(t, client, there, "with the next process")
}

// What a grant gave can be taken back while it is held.
func TestGrantTakenBack(t *testing.T) {
	r := newRig(t)
	g := r.open(t, Config{})
	r.configure(t, g)
	client, server := r.connect(t, r.vips[0], netip.AddrPort{})
	flow := flowOf(client)
	if err := g.Hold(flow, gate.Ingress, long); err != nil {
		t.Fatal(err)
	}
	if _, err := g.Grant(flow, 1, 1); err != nil {
		t.Fatal(err)
	}
	if got, err := g.Commit(flow, 2, 0); err != nil || got.Node != 0 || got.Epoch != 3 {
		t.Fatalf("Commit: %+v, %v", got, err)
	}
	write(t, client, "waits")
	silence(t, server)
	if _, err := g.Release(flow); err != nil {
		t.Fatal(err)
	}
	arrives(t, server, "waits")
	exchange(t, client, server, "here as before")
}

// A server's gate sends on what still comes for a connection that has moved, until the connection comes back.
func TestForward(t *testing.T) {
	r := newRig(t)
	g := r.open(t, Config{Server: true})
	r.configure(t, g)
	for _, vip := range r.vips {
		client, server := r.connect(t, vip, netip.AddrPort{})
		flow := flowOf(client)
		if err := g.Hold(flow, both, long); err != nil {
			t.Fatal(err)
		}
		write(t, client, "first")
		there := moved(t, server, r.servers[0], func() {})
		if frames, err := g.Forward(flow, 1, long); err != nil || len(frames) != 0 {
			t.Fatalf("Forward: %d frames, %v", len(frames), err)
		}
		arrives(t, there, "first")
		exchange(t, client, there, "moved")
		// To another host, and back here.
		if _, err := g.Forward(flow, 2, long); err != nil {
			t.Fatal(err)
		}
		write(t, client, "elsewhere")
		silence(t, there)
		if err := g.Serve(flow, long); err != nil {
			t.Fatal(err)
		}
		if _, err := client.Write([]byte("x")); err != nil && !errors.Is(err, unix.ECONNRESET) { // by what was sent again
			t.Fatal(err)
		}
		if err := client.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := client.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, io.EOF) {
			t.Errorf("here, where nobody has it: %v, want a reset", err)
		}
	}
	if _, err := g.Forward(flow4(), 0, long); err == nil {
		t.Error("Forward to this host")
	}
}

// What has moved is sent on also without the process, and the next one can end it.
func TestForwardTakenOver(t *testing.T) {
	r := newRig(t)
	g := r.open(t, Config{Server: true, Keep: true})
	r.configure(t, g)
	client, server := r.connect(t, r.vips[0], netip.AddrPort{})
	flow := flowOf(client)
	there := moved(t, server, r.servers[0], func() {
		if _, err := g.Forward(flow, 1, long); err != nil {
			t.Error(err)
		}
	})
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	exchange(t, client, there, "without a process")
	g = r.open(t, Config{Server: true})
	if err := client.SetLinger(0); err != nil {
		t.Fatal(err)
	}
	client.Close()
	// The client's next connection from there is this host's.
	if got, err := g.Route(flow); err != nil || got.Node != 1 || got.Entry() {
		t.Errorf("Route: %+v, %v", got, err)
	}
	if _, err := g.Release(flow); err != nil {
		t.Fatal(err)
	}
	again, here := r.connect(t, r.vips[0], flow.Remote)
	exchange(t, again, here, "the next connection")
}

// replay makes the frame in which the client would have sent text.
func replayFrame(t *testing.T, f tcprepair.Flow, seq, ack uint32, text string) []byte {
	t.Helper()
	header := make([]byte, 20)
	binary.BigEndian.PutUint16(header[0:], f.Remote.Port())
	binary.BigEndian.PutUint16(header[2:], f.Local.Port())
	binary.BigEndian.PutUint32(header[4:], seq)
	binary.BigEndian.PutUint32(header[8:], ack)
	header[12], header[13] = 5<<4, 0x18
	binary.BigEndian.PutUint16(header[14:], 500)
	segment := append(header, text...)
	from, to := f.Remote.Addr().AsSlice(), f.Local.Addr().AsSlice()
	pseudo := append(append([]byte(nil), from...), to...)
	pseudo = append(pseudo, 0, unix.IPPROTO_TCP)
	pseudo = binary.BigEndian.AppendUint16(pseudo, uint16(len(segment)))
	binary.BigEndian.PutUint16(segment[16:], checksum(append(pseudo, segment...)))
	var packet []byte
	if f.Local.Addr().Is4() {
		packet = make([]byte, 12, 20)
		packet[0], packet[8], packet[9] = 0x45, 64, unix.IPPROTO_TCP
		binary.BigEndian.PutUint16(packet[2:], uint16(20+len(segment)))
		packet = append(append(packet, from...), to...)
		binary.BigEndian.PutUint16(packet[10:], checksum(packet))
	} else {
		packet = make([]byte, 8, 40)
		packet[0], packet[6], packet[7] = 0x60, unix.IPPROTO_TCP, 64
		binary.BigEndian.PutUint16(packet[4:], uint16(len(segment)))
		packet = append(append(packet, from...), to...)
	}
	return gate.Frames([][]byte{append(packet, segment...)})[0]
}

func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(b[i]) << 8
		if i+1 < len(b) {
			sum += uint32(b[i+1])
		}
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

// sequence returns what the server's socket expects next, and will send next itself.
func sequence(t *testing.T, c *net.TCPConn) (seq, ack uint32) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var failed error
	if err := raw.Control(func(fd uintptr) {
		var s *tcprepair.Snapshot
		if failed = tcprepair.Freeze(int(fd)); failed == nil {
			if s, failed = tcprepair.Take(int(fd), tcprepair.Limits{}); failed == nil {
				seq, ack = s.ReceiveSeq, s.SendSeq
			}
			failed = errors.Join(failed, tcprepair.Resume(int(fd)))
		}
	}); errors.Join(err, failed) != nil {
		t.Fatal(errors.Join(err, failed))
	}
	return seq, ack
}

// Frames reach the local stack past the hold (Replay), or another host's (Divert).
func TestReplayAndDivert(t *testing.T) {
	r := newRig(t)
	g := r.open(t, Config{})
	r.configure(t, g)
	for _, vip := range r.vips {
		client, server := r.connect(t, vip, netip.AddrPort{})
		flow := flowOf(client)
		if err := g.Hold(flow, both, long); err != nil {
			t.Fatal(err)
		}
		seq, ack := sequence(t, server)
		if err := g.Replay(flow, [][]byte{replayFrame(t, flow, seq, ack, "by hand "), replayFrame(t, flow, seq+8, ack, "and in order")}); err != nil {
			t.Fatal(err)
		}
		arrives(t, server, "by hand and in order")
		seq, ack = sequence(t, server)
		there := moved(t, server, r.servers[0], func() {})
		if err := g.Divert(flow, 1, time.Second, replayFrame(t, flow, seq, ack, "over there")); err != nil {
			t.Fatal(err)
		}
		arrives(t, there, "over there")
		for name, err := range map[string]error{
			"Replay": g.Replay(flow4(), [][]byte{replayFrame(t, flow, seq, ack, "")}),
			"Divert": g.Divert(flow4(), 1, time.Second, replayFrame(t, flow, seq, ack, "")),
		} {
			if !errors.Is(err, gate.ErrFrame) {
				t.Errorf("%s of another flow's frame: %v", name, err)
			}
		}
		if err := g.Divert(flow, 3, time.Second, replayFrame(t, flow, seq, ack, "")); err == nil {
			t.Error("Divert to a node that nobody knows the way to")
		}
		if err := g.Divert(flow, 3, time.Second); err != nil {
			t.Errorf("Divert of nothing: %v", err)
		}
	}
}

// Flows that are not used are forgotten after IdleTimeout, and those that are used are not.
func TestIdle(t *testing.T) {
	r := newRig(t)
	const idle = 500 * time.Millisecond
	g := r.open(t, Config{IdleTimeout: idle})
	r.configure(t, g)
	var clients, servers []*net.TCPConn
	for _, vip := range r.vips {
		for range 2 {
			client, here := r.connect(t, vip, netip.AddrPort{})
			there := moved(t, here, r.servers[0], func() {
				if _, err := g.Commit(flowOf(client), 1, 1); err != nil {
					t.Error(err)
				}
			})
			clients, servers = append(clients, client), append(servers, there)
		}
	}
	for begin := time.Now(); time.Since(begin) < 2*idle; time.Sleep(idle / 10) {
		exchange(t, clients[0], servers[0], "in use")
		exchange(t, clients[2], servers[2], "in use")
	}
	// A flow that one list does not have may be there.
	for look, nodes := range [][]gate.Node{{1, 1, 1, 1}, {1, 0, 1, 0}} {
		if err := g.tend(time.Now(), true); err != nil {
			t.Fatal(err)
		}
		for i, want := range nodes {
			if got, err := g.Route(flowOf(clients[i])); err != nil || got.Node != want {
				t.Errorf("look %d: connection %d: %+v, %v, want node %d", look+1, i, got, err, want)
			}
		}
		exchange(t, clients[0], servers[0], "in use")
		exchange(t, clients[2], servers[2], "in use")
	}
	exchange(t, clients[0], servers[0], "still there")
}

// More than fits into one transaction.
func TestManyFlows(t *testing.T) {
	r := newRig(t)
	g := r.open(t, Config{Keep: true})
	r.configure(t, g)
	const n = 3*maxBatch + 1
	flows := make([]tcprepair.Flow, n)
	for i := range flows {
		vip := r.vips[i%2]
		from := netip.MustParseAddr("192.0.2.1")
		if vip.Addr().Is6() {
			from = netip.MustParseAddr("2001:db8::1")
		}
		flows[i] = tcprepair.NewFlow(vip, netip.AddrPortFrom(from, uint16(1024+i)))
		if _, err := g.Adopt(flows[i], 5, 1); err != nil {
			t.Fatal(err)
		}
	}
	if err := g.HoldAll(both, long, flows...); err != nil {
		t.Fatal(err)
	}
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	g = r.open(t, Config{})
	if s := g.Stats(); s.Flows != n || s.Holds != n {
		t.Errorf("%+v, want %d flows and holds", s, n)
	}
	if err := g.Forget(flows...); err != nil {
		t.Fatal(err)
	}
	if s := g.Stats(); s.Flows != 0 {
		t.Errorf("%d flows are left", s.Flows)
	}
}

func TestProbe(t *testing.T) {
	if f := Probe(); !f.OK || !f.Required || f.Detail != "" {
		t.Errorf("%+v", f)
	}
	// It leaves nothing, so it can be repeated.
	if f := Probe(); !f.OK {
		t.Errorf("%+v", f)
	}
}

func TestHoldErrors(t *testing.T) {
	r := newRig(t)
	g := r.open(t, Config{})
	check := func(when string, errs map[string]error) {
		for name, err := range errs {
			var op *OpError
			if !errors.As(err, &op) {
				t.Errorf("%s %s: %v", name, when, err)
			}
		}
	}
	check("with wrong arguments", map[string]error{
		"Hold nothing":  g.Hold(flow4(), 0, long),
		"Hold for ever": g.Hold(flow4(), both, 0),
		"Hold no flow":  g.Hold(tcprepair.Flow{}, both, long),
		"Shut":          g.Shut(r.vips[0], long),
	})
	if err := g.Shut(r.vips[0], long); !errors.Is(err, ErrUnsupported) {
		t.Errorf("Shut: %v", err)
	}
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	_, release := g.Release(flow4())
	_, forward := g.Forward(flow4(), 1, long)
	_, settle := g.Settle(flow4(), 1, 1)
	errs := map[string]error{
		"Hold": g.Hold(flow4(), both, long), "Serve": g.Serve(flow4(), long), "Yield": g.Yield(flow4()), "Release": release, "Forward": forward,
		"Settle": settle, "Divert": g.Divert(flow4(), 1, long), "Replay": g.Replay(flow4(), nil),
	}
	check("when closed", errs)
	for name, err := range errs {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("%s when closed: %v", name, err)
		}
	}
	if s := g.Stats(); s.Held != 0 {
		t.Errorf("%+v when closed", s)
	}
}

// Stats counts what comes in whole frames, whatever their size.
func TestCounts(t *testing.T) {
	r := newRig(t)
	g := r.open(t, Config{})
	r.configure(t, g)
	client, server := r.connect(t, r.vips[0], netip.AddrPort{})
	there := moved(t, server, r.servers[0], func() {
		if _, err := g.Commit(flowOf(client), 1, 1); err != nil {
			t.Error(err)
		}
	})
	before := g.Stats().Forwarded
	text := string(bytes.Repeat([]byte("some "), 1000))
	exchange(t, client, there, text)
	if after := g.Stats().Forwarded; after <= before {
		t.Errorf("%d packets forwarded before, %d after", before, after)
	}
}
