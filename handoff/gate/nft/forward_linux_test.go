// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/tcprepair"
)

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
