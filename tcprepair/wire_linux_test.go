// SPDX-License-Identifier: Apache-2.0

package tcprepair

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// wire joins a client and two servers that share one address: the packets of the client reach the owner only.
type wire struct {
	client, a, b *host

	mu    sync.Mutex
	owner *host
	// port is the server's, of the connection made last.
	port uint16
	// holdUp keeps the packets of the client, holdDown those to it, until they are released.
	holdUp, holdDown bool
	heldUp, heldDown [][]byte
	// trace tells the packets of the connection, for failures.
	trace []string
	// ends follows the two directions, that of the client first.
	ends [2]end
	// early counts the packets that a restore has sent before the thaw.
	early int
}

const (
	clientV4, serverV4 = "10.71.0.1", "10.71.0.2"
	clientV6, serverV6 = "fd71::1", "fd71::2"
)

func newWire(tb testing.TB) *wire {
	tb.Helper()
	w := &wire{
		client: newHost(tb, "client", clientV4+"/24", clientV6+"/64"),
		a:      newHost(tb, "a", serverV4+"/24", serverV6+"/64"),
		b:      newHost(tb, "b", serverV4+"/24", serverV6+"/64"),
	}
	w.owner = w.a
	var pumps sync.WaitGroup
	for _, h := range []*host{w.client, w.a, w.b} {
		pumps.Go(func() { w.pump(h) })
	}
	tb.Cleanup(func() { // runs before those of the hosts
		for _, h := range []*host{w.client, w.a, w.b} {
			_ = h.tun.Close()
		}
		pumps.Wait()
	})
	return w
}

func (w *wire) pump(h *host) {
	b := make([]byte, 1<<16)
	for {
		n, err := h.tun.Read(b)
		if err != nil {
			return // closed
		}
		switch p := append([]byte(nil), b[:n]...); {
		case isTCP(p):
			w.carry(h, p)
		case isMark(p):
			w.mu.Lock()
			h.marks++
			w.mu.Unlock()
		}
	}
}

func isTCP(p []byte) bool {
	const tcp = 6
	return len(p) >= 40 && (p[0]>>4 == 4 && p[9] == tcp || p[0]>>4 == 6 && p[6] == tcp)
}

// isMark recognizes UDP over IPv4, which only settle sends.
func isMark(p []byte) bool {
	const udp = 17
	return len(p) >= 28 && p[0]>>4 == 4 && p[9] == udp
}

// settle waits until the wire has taken all that h has sent so far.
func (w *wire) settle(tb testing.TB, h *host) {
	tb.Helper()
	w.mu.Lock()
	marks := h.marks
	w.mu.Unlock()
	var err error
	h.do(func() {
		var fd int
		if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err == nil {
			err = unix.Sendto(fd, []byte{0}, 0, &unix.SockaddrInet4{Port: 9, Addr: netip.MustParseAddr("10.71.0.3").As4()})
			_ = unix.Close(fd)
		}
	})
	if err != nil {
		tb.Fatal(err)
	}
	waitFor(tb, "the wire", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return h.marks > marks
	})
}

func (w *wire) carry(h *host, p []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.ours(p) {
		return // the end of an earlier connection
	}
	w.trace = append(w.trace, fmt.Sprintf("%s %s", h.name, describePacket(p)))
	h.sent++
	w.follow(h, p)
	switch {
	case h == w.client && w.holdUp:
		w.heldUp = append(w.heldUp, p)
	case h == w.client:
		_, _ = w.owner.tun.Write(p) // a closed device at the end of the test
	case w.holdDown:
		w.heldDown = append(w.heldDown, p)
	default:
		_, _ = w.client.tun.Write(p)
	}
}

// end is what the wire knows about the end of one direction.
type end struct {
	sent, acked bool
	after       uint32 // the FIN
}

// follow counts resets, but not those that answer a stray acknowledgement when both directions have ended and been
// acknowledged: by then one socket is gone, with or without a move.
func (w *wire) follow(h *host, p []byte) {
	const fin, rst, ack = 1, 4, 16
	mine, other := &w.ends[0], &w.ends[1]
	if h != w.client {
		mine, other = other, mine
	}
	t := p[40:]
	if p[0]>>4 == 4 {
		t = p[int(p[0]&15)*4:]
	}
	switch flags := t[13]; {
	case flags&rst != 0:
		if !mine.acked || !other.acked {
			h.resets++
		}
	case flags&ack != 0:
		if other.sent && binary.BigEndian.Uint32(t[8:]) == other.after {
			other.acked = true
		}
		if flags&fin != 0 {
			mine.sent, mine.after = true, binary.BigEndian.Uint32(t[4:])+uint32(len(t)-int(t[12]>>4)*4)+1
		}
	}
}

// ours reports whether a packet is one of the connection made last.
func (w *wire) ours(p []byte) bool {
	t := p[40:]
	if p[0]>>4 == 4 {
		t = p[int(p[0]&15)*4:]
	}
	return binary.BigEndian.Uint16(t) == w.port || binary.BigEndian.Uint16(t[2:]) == w.port
}

func describePacket(p []byte) string {
	t := p[40:]
	if p[0]>>4 == 4 {
		t = p[int(p[0]&15)*4:]
	}
	return fmt.Sprintf("opts %x flags %#x seq %d ack %d window %d, %d bytes", t[20:int(t[12]>>4)*4], t[13], binary.BigEndian.Uint32(t[4:]), binary.BigEndian.Uint32(t[8:]),
		binary.BigEndian.Uint16(t[14:]), len(t)-int(t[12]>>4)*4)
}

// dump logs the trace if the test has failed.
func (w *wire) dump(tb testing.TB) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if tb.Failed() {
		for _, l := range w.trace {
			tb.Log(l)
		}
	}
}

// hold sets what is held. What was held and is not any more arrives now, in order.
func (w *wire) hold(up, down bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.holdUp = up; !up {
		for _, p := range w.heldUp {
			_, _ = w.owner.tun.Write(p)
		}
		w.heldUp = nil
	}
	if w.holdDown = down; !down {
		for _, p := range w.heldDown {
			_, _ = w.client.tun.Write(p)
		}
		w.heldDown = nil
	}
}

// forget ends all holding, delivering nothing, and starts counting anew.
func (w *wire) forget() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ends = [2]end{}
	w.port = 0 // what still comes belongs to nobody
	w.holdUp, w.holdDown, w.heldUp, w.heldDown, w.trace = false, false, nil, nil, nil
	for _, h := range []*host{w.client, w.a, w.b} {
		h.sent, h.resets = 0, 0
	}
}

// own points the path at h.
func (w *wire) own(h *host) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.owner = h
}

// silence stops listening to h, for good: what it sends fills its device's queue and is dropped there, which wakes nobody.
func (w *wire) silence(tb testing.TB, h *host) {
	tb.Helper()
	raw, err := h.tun.SyscallConn()
	if err != nil {
		tb.Fatal(err)
	}
	fd := -1
	if e := raw.Control(func(tun uintptr) { fd, err = unix.Dup(int(tun)) }); e != nil || err != nil {
		tb.Fatal(e, err)
	}
	_ = h.tun.Close()
	tb.Cleanup(func() { _ = unix.Close(fd) })
}

// count returns how many TCP packets, and how many resets, have come out of h.
func (w *wire) count(h *host) (sent, resets int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return h.sent, h.resets
}
