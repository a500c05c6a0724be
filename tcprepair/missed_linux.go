// SPDX-License-Identifier: Apache-2.0

package tcprepair

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// missedPiece is how much data Missed puts into one packet, in bytes: every link's MTU has room for it (RFC 8200, section 5).
const missedPiece = 1200

// Watermark is where the receive queue of a snapshot ends.
type Watermark struct {
	flow   Flow
	next   uint32 // sequence number of what comes next
	ack    uint32
	window uint16 // of the peer, as it sends it
	closed bool   // the peer's FIN lies before it
}

// Watermark returns where s ends, so that Missed can tell what came later.
func (s *Snapshot) Watermark() Watermark {
	return Watermark{
		flow: s.Flow, next: s.nextReceive(), ack: s.SendSeq, closed: s.State.PeerClosed(),
		window: uint16(min(s.Window.Send>>s.Negotiated.SendScale, 1<<16-1)),
	}
}

// Missed returns what has come into the frozen connection since its snapshot was taken, as IP packets that its peer might have
// sent: a packet that had passed the gate just before the flow was held can reach the socket after the snapshot. It is in the
// socket alone, and the peer would have to send it again. To be called before Discard, and the packets to be given to the target's
// stack before those that were held. Nearly always there is nothing.
func (w Watermark) Missed(fd int) ([][]byte, error) {
	packets, err := w.missed(socket(fd))
	if err != nil {
		return nil, &OpError{Op: "look for late packets", Flow: w.flow, Err: err}
	}
	return packets, nil
}

func (w Watermark) missed(sock socket) ([][]byte, error) {
	if err := sock.selectQueue(queueReceive); err != nil {
		return nil, fmt.Errorf("select the receive queue: %w", err)
	}
	end, err := sock.get(unix.IPPROTO_TCP, unix.TCP_QUEUE_SEQ)
	if err != nil {
		return nil, fmt.Errorf("read TCP_QUEUE_SEQ: %w", err)
	}
	if end == w.next || w.closed {
		return nil, nil
	}
	// Something may come at any moment. What was read belongs together if the queue ends where it did; even a FIN moves its end.
	for range takeAttempts {
		data, closed, err := w.tail(sock, end)
		now, e := sock.get(unix.IPPROTO_TCP, unix.TCP_QUEUE_SEQ)
		switch {
		case e != nil:
			return nil, fmt.Errorf("read TCP_QUEUE_SEQ: %w", e)
		case now != end:
			end = now
		case err != nil:
			return nil, err
		default:
			return w.packets(data, closed), nil
		}
	}
	return nil, fmt.Errorf("%w: more has come each of %d times that the receive queue was read", ErrUnstable, takeAttempts)
}

// tail reads what lies between the watermark and end, and whether the peer's FIN follows.
func (w Watermark) tail(sock socket, end uint32) (data []byte, closed bool, err error) {
	var info tcpInfo
	if _, err := sock.info(&info); err != nil {
		return nil, false, fmt.Errorf("read TCP_INFO: %w", err)
	}
	closed = info.state.PeerClosed()
	size := int(end - w.next)
	if closed {
		size--
	}
	data, err = receivedTail(sock, size)
	return data, closed, err
}

// receivedTail returns the last n bytes of the receive queue.
func receivedTail(sock socket, n int) ([]byte, error) {
	if n == 0 {
		return nil, nil
	}
	queued, err := sock.ioctl(unix.TIOCINQ)
	if err != nil {
		return nil, fmt.Errorf("read SIOCINQ: %w", err)
	}
	if queued < n {
		return nil, fmt.Errorf("%w: %d bytes are left of %d", ErrUnstable, queued, n)
	}
	_ = sock.set(unix.SOL_SOCKET, unix.SO_PEEK_OFF, 0) // Linux before 6.10 has none for TCP, and peeks from the beginning
	b, err := peekThrough(sock, queued, false)
	if err != nil {
		return nil, err
	}
	return b[queued-n:], nil
}

func (w Watermark) packets(data []byte, closed bool) [][]byte {
	var packets [][]byte
	g := segment{from: w.flow.Remote, to: w.flow.Local, seq: w.next, ack: w.ack, window: w.window}
	for len(data) > 0 || closed {
		g.data, g.flags = data[:min(len(data), missedPiece)], tcpACK
		if data = data[len(g.data):]; len(data) == 0 && closed {
			g.flags |= tcpFIN
			closed = false
		}
		packets = append(packets, g.packet())
		g.seq += uint32(len(g.data))
	}
	return packets
}
