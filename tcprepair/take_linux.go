// SPDX-License-Identifier: Apache-2.0

package tcprepair

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// takeAttempts bounds how often a snapshot is begun anew because a packet came in between.
const takeAttempts = 4

// ackMemory is how long ago data may have come, in milliseconds, for its acknowledgement to be in doubt: longer than a delayed one
// waits (TCP_DELACK_MAX, 200 ms), with some time for the way to the gate.
const ackMemory = 300

// adjustedBuffer is the size, in bytes, above which autotuning has surely been at work on a buffer: what a new connection has on an
// unconfigured kernel. Smaller ones are left to the target's kernel.
const (
	adjustedSendBuffer    = 87040
	adjustedReceiveBuffer = 131072
)

// Take reads a frozen connection. It changes nothing, and whether it succeeds or fails the socket stays frozen: afterwards the caller sends the
// snapshot away and calls Discard once the connection lives elsewhere, or Resume if it does not.
//
// Errors: ErrState (not frozen, or the peer has reset it meanwhile), ErrTooLarge, ErrUrgent, and ErrUnstable when packets keep coming and
// going. Data that the peer sent out of order is not in the snapshot: the kernel does not show it. The peer sends it again.
func Take(fd int, lim Limits) (*Snapshot, error) {
	o, err := ReadOutline(fd)
	if err != nil {
		return nil, err
	}
	return o.Take(fd, lim)
}

// Take is as the function Take, with an outline of the connection that was read before it was frozen.
func (o *Outline) Take(fd int, lim Limits) (*Snapshot, error) { return o.TakeRest(fd, lim, 0) }

// TakeRest is Take without the first seen bytes of the receive queue, which PeekReceived has returned while the connection was
// alive; nobody may have read from it in between. Snapshot.Prepend puts them back. Linux before 6.10 copies them all the same.
func (o *Outline) TakeRest(fd int, lim Limits, seen int) (*Snapshot, error) {
	var before tcpInfo
	if err := movable(socket(fd), &before); err != nil {
		return nil, &OpError{Op: "snapshot", Flow: o.Flow, Err: err}
	}
	return o.take(socket(fd), lim, seen, &before)
}

// FreezeTake is Freeze and TakeRest in one, which saves some system calls within the freeze. When it fails the connection goes on, as
// after Resume.
func (o *Outline) FreezeTake(fd int, lim Limits, seen int) (*Snapshot, error) {
	sock := socket(fd)
	var before tcpInfo
	err := movable(sock, &before)
	if err == nil && !o.plain {
		err = plain(sock)
	}
	if err == nil {
		err = enterRepair(sock, &before)
	}
	if err != nil {
		return nil, &OpError{Op: "freeze", Flow: o.Flow, Err: err}
	}
	s, err := o.take(sock, lim, seen, &before)
	if err != nil {
		return nil, errors.Join(err, Resume(fd))
	}
	return s, nil
}

// take reads the connection as often as it must; before is what TCP_INFO told first.
func (o *Outline) take(sock socket, lim Limits, seen int, before *tcpInfo) (*Snapshot, error) {
	s := &Snapshot{Flow: o.Flow, Mapped: o.Mapped, Options: o.Options}
	unsent := uint32(0)
	err := s.take(sock, lim, seen, before, &unsent)
	for i := 1; i < takeAttempts && errors.Is(err, ErrUnstable); i++ {
		if err = movable(sock, before); err == nil {
			err = s.take(sock, lim, seen, before, &unsent)
		}
	}
	// Whichever queue is left selected, a stray write would go into it.
	if e := sock.selectQueue(queueNone); err == nil && e != nil {
		err = e
	}
	if errors.Is(err, unix.EPERM) {
		err = fmt.Errorf("%w: it is not frozen: %w", ErrState, err)
	}
	if err != nil {
		return nil, &OpError{Op: "snapshot", Flow: o.Flow, Err: err}
	}
	return s, nil
}

// take reads the connection once. TCP_INFO, read first and last, counts the segments in and out: if nothing has changed
// there, all that was read in between belongs to one moment.
//
// The count of unsent bytes is an exception. While the send queue is selected, whatever makes the kernel try to send (a
// pacing timer, the completion of an earlier packet) makes it believe that all of the queue has been sent, without a packet.
// So what was unsent once stays unsent, in this reading and in the next.
func (s *Snapshot) take(sock socket, lim Limits, seen int, before *tcpInfo, unsent *uint32) error {
	*unsent = max(*unsent, before.notSent)
	before.notSent = *unsent
	var mem memInfo
	if err := sock.memory(&mem); err != nil {
		return fmt.Errorf("read SO_MEMINFO: %w", err)
	}
	s.setInfo(before)
	if err := s.takeSend(sock, before, &mem, lim); err != nil {
		return err
	}
	if err := s.takeReceive(sock, &mem, lim, seen); err != nil {
		return err
	}
	if err := s.takeRest(sock, &mem); err != nil {
		return err
	}
	var after tcpInfo
	if _, err := sock.info(&after); err != nil {
		return fmt.Errorf("read TCP_INFO: %w", err)
	}
	heard := after.bytesReceived > 0 || s.State.PeerClosed()
	s.AckDue = heard && after.lastRecv < ackMemory || s.Window.Announced != s.nextReceive()
	if !sameMoment(before, &after) {
		return ErrUnstable
	}
	return nil
}

func sameMoment(before, after *tcpInfo) bool {
	return before.state == after.state && before.segsIn == after.segsIn && before.segsOut == after.segsOut
}

// setInfo takes over what TCP_INFO tells.
func (s *Snapshot) setInfo(info *tcpInfo) {
	s.State = info.state
	n := &s.Negotiated
	n.Timestamps = info.options&infoTimestamps != 0
	n.SACK = info.options&infoSACK != 0
	n.ECN = info.options&infoECN != 0
	if n.WindowScaling = info.options&infoScale != 0; n.WindowScaling {
		n.SendScale, n.ReceiveScale = info.scales()
	}
	s.Advice = Advice{
		CongestionWindow:   info.congestionWindow,
		SlowStartThreshold: info.sendThreshold,
		RTT:                time.Duration(info.rtt) * time.Microsecond,
		RTTVar:             time.Duration(info.rttVar) * time.Microsecond,
	}
	const unknown32, unknown64 = 1<<32 - 1, 1<<64 - 1
	if info.minRTT != unknown32 {
		s.Advice.MinRTT = time.Duration(info.minRTT) * time.Microsecond
	}
	if info.pacingRate != unknown64 {
		s.Advice.PacingRate = info.pacingRate
	}
	if s.Options.MaxPacingRate = 0; info.maxPacingRate != unknown64 {
		s.Options.MaxPacingRate = info.maxPacingRate
	}
}

func (s *Snapshot) takeSend(sock socket, info *tcpInfo, mem *memInfo, lim Limits) error {
	if err := sock.selectQueue(queueSend); err != nil {
		return fmt.Errorf("select the send queue: %w", err)
	}
	end, err := sock.get(unix.IPPROTO_TCP, unix.TCP_QUEUE_SEQ)
	if err != nil {
		return fmt.Errorf("read TCP_QUEUE_SEQ: %w", err)
	}
	// In the order of the sequence numbers: unacknowledged data, unsent data, FIN. The kernel counts the FIN in both lengths.
	queued, unsent := 0, int(info.notSent)
	if mem.sendQueued > 0 {
		if queued, err = sock.ioctl(unix.TIOCOUTQ); err != nil {
			return fmt.Errorf("read SIOCOUTQ: %w", err)
		}
	}
	s.FinSent = s.State.Closed() && unsent == 0
	s.SendSeq = end - uint32(queued)
	switch {
	case s.State == FinWait2:
		s.SendSeq-- // the FIN is acknowledged
	case s.State.finPending():
		queued--
		if unsent > 0 {
			unsent--
		}
	}
	if queued < unsent {
		return ErrUnstable
	}
	if queued > lim.queueBytes() {
		return fmt.Errorf("%w: %d bytes to send, limit %d", ErrTooLarge, queued, lim.queueBytes())
	}
	s.Unacked, s.Unsent = nil, nil
	if queued > 0 {
		b, err := peekSendQueue(sock, queued, int(info.sendMSS))
		if err != nil {
			return err
		}
		s.Unacked, s.Unsent = b[:queued-unsent:queued-unsent], b[queued-unsent:]
	}
	return nil
}

// peekSendQueue returns the last n bytes of the selected send queue. The kernel copies whole segments or nothing: a
// segment that is acknowledged in part only is still there with its first byte, so there must be room for more than is asked for.
func peekSendQueue(sock socket, n, slack int) ([]byte, error) {
	const largestSegment = 64 << 10
	b := make([]byte, n+slack)
	got, err := sock.receive(b, unix.MSG_PEEK)
	if errors.Is(err, unix.EFAULT) {
		b = make([]byte, n+largestSegment)
		got, err = sock.receive(b, unix.MSG_PEEK)
	}
	switch {
	case errors.Is(err, unix.EFAULT), err == nil && got < n:
		return nil, ErrUnstable
	case err != nil:
		return nil, fmt.Errorf("read the send queue: %w", err)
	}
	return b[got-n : got], nil
}

func (s *Snapshot) takeReceive(sock socket, mem *memInfo, lim Limits, seen int) error {
	if err := sock.selectQueue(queueReceive); err != nil {
		return fmt.Errorf("select the receive queue: %w", err)
	}
	end, err := sock.get(unix.IPPROTO_TCP, unix.TCP_QUEUE_SEQ)
	if err != nil {
		return fmt.Errorf("read TCP_QUEUE_SEQ: %w", err)
	}
	s.Received = nil
	if mem.receiveAlloc > 0 || seen > 0 {
		if s.Received, err = peekReceiveQueue(sock, lim, seen); err != nil {
			return err
		}
	}
	s.ReceiveSeq = end - uint32(len(s.Received))
	if s.State.PeerClosed() {
		s.ReceiveSeq--
	}
	return nil
}

// Unread returns how many bytes a connection has received and nobody has read (SIOCINQ): how much PeekReceived would return now.
func Unread(fd int) (int, error) {
	n, err := socket(fd).ioctl(unix.TIOCINQ)
	if err != nil {
		return 0, opError("read SIOCINQ", socket(fd), err)
	}
	return n, nil
}

// PeekReceived returns a copy of what a live connection has received and nobody has read yet, from byte seen of it on, so that
// it can be sent ahead of the freeze. It must not be read from between the first of these calls and TakeRest.
func PeekReceived(fd int, lim Limits, seen int) ([]byte, error) {
	b, err := peekLive(socket(fd), lim, seen)
	if err != nil {
		return nil, opError("peek", socket(fd), err)
	}
	return b, nil
}

// peekLive returns what the receive queue of a live connection holds from byte seen on, up to an urgent byte. More may come meanwhile.
func peekLive(sock socket, lim Limits, seen int) ([]byte, error) {
	n, err := sock.ioctl(unix.TIOCINQ)
	if err != nil {
		return nil, fmt.Errorf("read SIOCINQ: %w", err)
	}
	n = min(n, lim.queueBytes())
	if n <= seen {
		return nil, nil
	}
	offset, err := sock.peekOffset()
	if err != nil {
		return nil, err
	}
	if int32(offset) >= 0 { // the application uses it
		return nil, nil
	}
	skip := seen
	if seen > 0 && sock.set(unix.SOL_SOCKET, unix.SO_PEEK_OFF, uint32(seen)) == nil { // Linux 6.10
		skip = 0
		n -= seen
	}
	b := make([]byte, n)
	m, err := sock.receive(b, unix.MSG_PEEK)
	if skip == 0 && seen > 0 {
		if e := sock.set(unix.SOL_SOCKET, unix.SO_PEEK_OFF, offset); err == nil && e != nil {
			err = fmt.Errorf("put SO_PEEK_OFF back: %w", e)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("read the receive queue: %w", err)
	}
	return b[min(skip, m):m], nil
}

// Prepend puts received, which was sent ahead, in front of what the snapshot holds of the receive queue.
func (s *Snapshot) Prepend(received []byte) {
	if len(received) == 0 {
		return
	}
	s.Received = append(received, s.Received...)
	s.ReceiveSeq -= uint32(len(received))
}

// peekReceiveQueue returns the receive queue from its byte seen on.
func peekReceiveQueue(sock socket, lim Limits, seen int) ([]byte, error) {
	n, err := sock.ioctl(unix.TIOCINQ) // without the FIN
	if err != nil {
		return nil, fmt.Errorf("read SIOCINQ: %w", err)
	}
	if n > lim.queueBytes() {
		return nil, fmt.Errorf("%w: %d bytes received, limit %d", ErrTooLarge, n, lim.queueBytes())
	}
	// An urgent byte that was read, or that is the next to be read: SIOCINQ ends before it, and more may follow.
	if mark, err := sock.ioctl(unix.SIOCATMARK); err != nil || mark != 0 {
		return nil, errors.Join(err, ErrUrgent)
	}
	if _, err := sock.receive(make([]byte, 1), unix.MSG_OOB|unix.MSG_PEEK); !errors.Is(err, unix.EINVAL) {
		return nil, ErrUrgent
	}
	if n < seen {
		return nil, fmt.Errorf("%w: somebody has read from it: %d bytes are left of %d", ErrUnstable, n, seen)
	}
	if n == seen {
		return nil, endsThere(sock, n)
	}
	offset, err := sock.peekOffset()
	if err != nil {
		return nil, err
	}
	// From there, and then on where the first reading ended. Linux before 6.10 has no SO_PEEK_OFF for TCP, and always peeks from the beginning.
	follows := sock.set(unix.SOL_SOCKET, unix.SO_PEEK_OFF, uint32(seen)) == nil
	queued, skip := n, seen
	if follows {
		n, skip = n-seen, 0
	}
	b, err := peekThrough(sock, n, follows)
	if errors.Is(err, ErrUrgent) {
		// Or a segment has just come that nobody held: then there is more than there was.
		if now, e := sock.ioctl(unix.TIOCINQ); e == nil && now != queued {
			err = ErrUnstable
		}
	}
	if err == nil && !follows {
		err = endsThere(sock, queued)
	}
	if err == nil {
		b = b[skip:]
	}
	if follows {
		if e := sock.set(unix.SOL_SOCKET, unix.SO_PEEK_OFF, offset); err == nil && e != nil {
			err = fmt.Errorf("put SO_PEEK_OFF back: %w", e)
		}
	}
	return b, err
}

// endsThere wants the receive queue to end behind its first n bytes, which is where SIOCINQ says that it does. That is wrong where
// the application has read an urgent byte, and neither what lies before it nor what lies behind: SIOCINQ ends at its mark, but not while
// urgent bytes are inline.
func endsThere(sock socket, n int) error {
	inline, err := sock.get(unix.SOL_SOCKET, unix.SO_OOBINLINE)
	if err != nil || inline != 0 {
		return err
	}
	if err := sock.set(unix.SOL_SOCKET, unix.SO_OOBINLINE, 1); err != nil {
		return fmt.Errorf("set SO_OOBINLINE: %w", err)
	}
	whole, err := sock.ioctl(unix.TIOCINQ)
	if err := errors.Join(err, sock.set(unix.SOL_SOCKET, unix.SO_OOBINLINE, 0)); err != nil {
		return fmt.Errorf("read SIOCINQ: %w", err)
	}
	if whole == n {
		return nil
	}
	if now, err := sock.ioctl(unix.TIOCINQ); err != nil || now != n {
		return errors.Join(ErrUnstable, err)
	}
	return ErrUrgent
}

// peekThrough returns the n bytes that the receive queue holds, according to SIOCINQ. If follows is set, a second reading
// goes on behind them: whatever it finds lies behind the mark of an urgent byte that the application has read already.
func peekThrough(sock socket, n int, follows bool) ([]byte, error) {
	b := make([]byte, n)
	m, err := sock.receive(b, unix.MSG_PEEK)
	if err != nil {
		return nil, fmt.Errorf("read the receive queue: %w", err)
	}
	if m != n {
		return nil, ErrUnstable
	}
	if follows {
		if m, err := sock.receive(make([]byte, 1), unix.MSG_PEEK); m > 0 || err != nil && !errors.Is(err, unix.EAGAIN) {
			return nil, errors.Join(ErrUrgent, err)
		}
	}
	return b, nil
}

// takeRest reads what is left: window, timestamp, MSS, and the sizes that autotuning has come to.
func (s *Snapshot) takeRest(sock socket, mem *memInfo) (err error) {
	if err := sock.window(&s.Window); err != nil {
		return fmt.Errorf("read TCP_REPAIR_WINDOW: %w", err)
	}
	if s.Timestamp = 0; s.Negotiated.Timestamps {
		if s.Timestamp, err = sock.get(unix.IPPROTO_TCP, unix.TCP_TIMESTAMP); err != nil {
			return fmt.Errorf("read TCP_TIMESTAMP: %w", err)
		}
	}
	mss, err := sock.get(unix.IPPROTO_TCP, unix.TCP_MAXSEG) // of the peer, in repair mode
	if err != nil {
		return fmt.Errorf("read TCP_MAXSEG: %w", err)
	}
	s.Negotiated.MSS = uint16(min(mss, 1<<16-1))
	o := &s.Options
	o.SendBuffer, o.ReceiveBuffer, o.WindowClamp = 0, 0, 0
	if o.SendBufferLocked || mem.sendBuffer > adjustedSendBuffer {
		o.SendBuffer = mem.sendBuffer
	}
	if o.ReceiveBufferLocked || mem.receiveBuffer > adjustedReceiveBuffer {
		o.ReceiveBuffer = mem.receiveBuffer
		if o.WindowClamp, err = sock.get(unix.IPPROTO_TCP, unix.TCP_WINDOW_CLAMP); err != nil {
			return fmt.Errorf("read TCP_WINDOW_CLAMP: %w", err)
		}
	}
	return nil
}
