// SPDX-License-Identifier: Apache-2.0

package tcprepair

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// rawSocket sends hand-made packets; -1 is none.
type rawSocket socket

func (w rawSocket) close() {
	if w >= 0 {
		socket(w).close()
	}
}

// openRaw opens a raw socket for the connection's address family.
func openRaw(f Flow) (rawSocket, error) {
	family := unix.AF_INET
	if f.Local.Addr().Is6() {
		family = unix.AF_INET6
	}
	s, err := newSocket(family, unix.SOCK_RAW, unix.IPPROTO_RAW)
	if errors.Is(err, unix.EPERM) {
		return -1, fmt.Errorf("%w CAP_NET_RAW: a half-closed connection is restored by a hand-made segment: %w", ErrPermission, err)
	}
	if err != nil {
		return -1, fmt.Errorf("open raw socket: %w", err)
	}
	return rawSocket(s), nil
}

// halfClose takes a connection that is restored as far as Established to its state, as far as that can be done in repair mode.
//
//	FinWait1  our FIN                        Closing  our FIN, the peer's FIN
//	FinWait2  our FIN, its acknowledgement   LastAck  the peer's FIN, our FIN
//	CloseWait the peer's FIN
//
// Our FIN comes from shutdown: in repair mode, with the send queue selected, the kernel takes it for sent. The peer's part is a
// hand-made segment. A FIN that was not sent yet must follow the unsent data, and so is left to Thaw; so is the peer's in
// Closing, which the kernel acknowledges at once.
func (r *Restored) halfClose() (err error) {
	s := r.snap
	if s.State == Established || s.State == FinWait1 && !s.FinSent {
		return nil
	}
	if s.State.PeerClosed() || s.State == FinWait2 {
		if r.raw, err = openRaw(s.Flow); err != nil {
			return err
		}
	}
	switch s.State {
	case FinWait1:
		return r.finSent()
	case FinWait2:
		if err := r.finSent(); err != nil {
			return err
		}
		return r.inject(tcpACK, s.finSeq()+1, FinWait2)
	case CloseWait:
		return r.inject(tcpFIN|tcpACK, s.SendSeq, CloseWait)
	case LastAck:
		if err := r.inject(tcpFIN|tcpACK, s.SendSeq, CloseWait); err != nil || !s.FinSent {
			return err
		}
		return r.finSent()
	case Closing:
		if s.FinSent {
			return r.finSent()
		}
	}
	return nil
}

// closeLate is the rest of halfClose, after the unsent data has been written.
func (r *Restored) closeLate() error {
	s := r.snap
	if s.State.Closed() && !s.FinSent {
		if err := r.sock.shutdownWrite(); err != nil {
			return fmt.Errorf("shut down: %w", err)
		}
	}
	if s.State == Closing {
		return r.send(tcpFIN|tcpACK, s.SendSeq, Closing)
	}
	return nil
}

// finSent puts a FIN into the send queue as one that has been sent.
func (r *Restored) finSent() error {
	if err := r.sock.selectQueue(queueSend); err != nil {
		return fmt.Errorf("select the send queue: %w", err)
	}
	if err := r.sock.shutdownWrite(); err != nil {
		return fmt.Errorf("shut down: %w", err)
	}
	if err := r.sock.selectQueue(queueNone); err != nil {
		return fmt.Errorf("select no queue: %w", err)
	}
	return nil
}

// inject sends the connection a segment from its peer, awaits the state that follows, and sees to it that the peer does not hear of it: the
// acknowledgement that a FIN calls for is delayed by the kernel, and sent here while the socket is bound to lo, from where it leads nowhere.
func (r *Restored) inject(flags uint8, ack uint32, want State) error {
	s := r.snap
	if err := r.send(flags, ack, want); err != nil {
		return err
	}
	if flags&tcpFIN != 0 {
		if err := r.acknowledgeIntoTheVoid(); err != nil {
			return err
		}
	}
	if err := r.sock.setWindow(s.Window); err != nil { // both segments have moved it
		return fmt.Errorf("set TCP_REPAIR_WINDOW to %+v: %w", s.Window, err)
	}
	return nil
}

// acknowledgeIntoTheVoid has the kernel send the acknowledgement that is due while the socket is bound to lo, so that no timer
// sends it to the peer. TCP_QUICKACK alone does not, with the FIN unread in the queue; but a window that seems to be announced
// long ago does.
func (r *Restored) acknowledgeIntoTheVoid() error {
	const long = 1 << 20
	w := r.snap.Window
	w.Announced, w.Receive = r.snap.nextReceive()-long, w.Receive+long
	if err := r.sock.setWindow(w); err != nil {
		return fmt.Errorf("set TCP_REPAIR_WINDOW to %+v: %w", w, err)
	}
	if err := r.sock.setName(unix.SOL_SOCKET, unix.SO_BINDTODEVICE, "lo"); err != nil {
		return permission(fmt.Errorf("bind to lo: %w", err), "CAP_NET_RAW")
	}
	if err := r.sock.set(unix.IPPROTO_TCP, unix.TCP_QUICKACK, 2); err != nil { // 2: this once
		return fmt.Errorf("set TCP_QUICKACK: %w", err)
	}
	if err := r.sock.setName(unix.SOL_SOCKET, unix.SO_BINDTODEVICE, r.snap.Options.Device); err != nil {
		return permission(fmt.Errorf("unbind from lo: %w", err), "CAP_NET_RAW")
	}
	return nil
}

// send sends the segment to this host and waits for its effect. It is there when send returns, unless the softirq was put off.
func (r *Restored) send(flags uint8, ack uint32, want State) error {
	const attempts, milliseconds = 100, 1
	s := r.snap
	seq := s.nextReceive()
	if flags&tcpFIN != 0 {
		seq--
	}
	g := segment{
		from: s.Flow.Remote, to: s.Flow.Local, seq: seq, ack: ack, flags: flags,
		window: uint16(min(s.Window.Send>>s.Negotiated.SendScale, 1<<16-1)),
	}
	if err := socket(r.raw).sendTo(g.packet(), s.Flow.Local.Addr()); err != nil {
		return fmt.Errorf("send a hand-made segment to %s: %w", s.Flow.Local, err)
	}
	var info tcpInfo
	for i := 0; ; i++ {
		if _, err := r.sock.info(&info); err != nil {
			return fmt.Errorf("read TCP_INFO: %w", err)
		}
		if info.state == want {
			return nil
		}
		if i == attempts {
			return fmt.Errorf("%w: a hand-made segment from %s to %s did not lead from %s to %s: is lo up, and does a packet filter drop it",
				ErrAddress, s.Flow.Remote, s.Flow.Local, info.state, want)
		}
		pause(milliseconds)
	}
}
