// SPDX-License-Identifier: Apache-2.0

package streamer

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"syscall"
	"time"

	"github.com/pion/rtcp"
	"github.com/pion/rtp"
	"golang.org/x/sys/unix"
)

const (
	// interval is the time between two packets, samples how many there are in each, of 8000 a second.
	interval = 20 * time.Millisecond
	samples  = 160
	// reportEvery is the time between two sender reports.
	reportEvery = time.Second
	// maxBehind bounds how many packets are sent at once when a session has stood still.
	maxBehind = 50
	// maxDatagram is more than a datagram of the media has, in bytes.
	maxDatagram = 2048
	// socketRoom is the sockets' receive buffer: what waits at the entry during a move comes at once.
	socketRoom = 1 << 20
)

// Dialer opens a UDP socket that is bound to local and connected to remote.
type Dialer func(ctx context.Context, local, remote netip.AddrPort) (*net.UDPConn, error)

// Dial is the Dialer of this network namespace. Several sockets can have one local address.
func Dial(ctx context.Context, local, remote netip.AddrPort) (*net.UDPConn, error) {
	d := net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(local), Control: func(_, _ string, c syscall.RawConn) error {
		var failed error
		err := c.Control(func(fd uintptr) {
			failed = errors.Join(
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1), unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, socketRoom))
		})
		return errors.Join(err, failed)
	}}
	c, err := d.DialContext(ctx, "udp", remote.String())
	if err != nil {
		return nil, err
	}
	return c.(*net.UDPConn), nil //nolint:forcetypeassert // that is what "udp" gives
}

// open opens the sockets.
func (s *session) open(client, server netip.AddrPort) (err error) {
	ctx := context.Background() // nothing is waited for
	if s.rtp, err = s.dial(ctx, server, client); err != nil {
		return err
	}
	if s.rtcp, err = s.dial(ctx, control(server), control(client)); err != nil {
		_ = s.rtp.Close()
		s.rtp = nil
		return err
	}
	s.wg.Go(func() { s.receive(s.rtp, s.takeRTP) })
	s.wg.Go(func() { s.receive(s.rtcp, s.takeRTCP) })
	return nil
}

// close ends the medium. What has come until then has been counted, unless the session is elsewhere.
func (s *session) close() {
	s.mu.Lock()
	if s.rtp != nil {
		_, _ = s.rtp.Close(), s.rtcp.Close()
	}
	s.mu.Unlock()
	s.wg.Wait()
}

// takeRTP counts a datagram of the client's RTP. What is none is the client's way of opening a path through a firewall. s.mu is held.
func (s *session) takeRTP(b []byte) {
	var h rtp.Header
	if _, err := h.Unmarshal(b); err == nil {
		s.rec.Received.take(h.SequenceNumber)
	}
}

// takeRTCP counts a datagram of RTCP. s.mu is held.
func (s *session) takeRTCP([]byte) { s.rec.Received.RTCP++ }

// receive counts what comes to a socket until it is closed.
func (s *session) receive(c *net.UDPConn, take func([]byte)) {
	for raw, err := c.SyscallConn(); err == nil; {
		// It only waits for a datagram: who holds s.mu reads.
		err = raw.Read(func(fd uintptr) bool {
			_, _, err := unix.Recvfrom(int(fd), nil, unix.MSG_DONTWAIT|unix.MSG_PEEK)
			return !errors.Is(err, unix.EAGAIN)
		})
		if err != nil {
			return
		}
		s.mu.Lock()
		// One that has come after the export is not this process's, unless the session stays.
		if s.await(context.Background()) == nil {
			readAll(raw, take)
		} else {
			err = net.ErrClosed
		}
		s.mu.Unlock()
	}
}

// readAll takes what a socket has received.
func readAll(raw syscall.RawConn, take func([]byte)) {
	var b [maxDatagram]byte
	// Not Read, which would wait for receive.
	_ = raw.Control(func(fd uintptr) {
		for {
			n, _, err := unix.Recvfrom(int(fd), b[:], unix.MSG_DONTWAIT)
			switch {
			case err == nil:
				take(b[:n])
			case !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.ECONNREFUSED): // the latter: the client has closed its port
				return
			}
		}
	})
}

// drain takes what both sockets have received. s.mu is held.
func (s *session) drain(ctx context.Context) error {
	for _, c := range []struct {
		conn *net.UDPConn
		take func([]byte)
	}{{s.rtp, s.takeRTP}, {s.rtcp, s.takeRTCP}} {
		if c.conn == nil {
			continue
		}
		raw, err := c.conn.SyscallConn()
		if err != nil {
			return err
		}
		readAll(raw, c.take)
	}
	return ctx.Err()
}

// begin says when the first packet is due.
func (o *outgoing) begin() {
	o.Due = time.Now().Add(interval)
	o.Report = o.Due
}

// send sends the medium, and reports, until ctx ends or the session is elsewhere.
func (s *session) send(ctx context.Context) {
	t := time.NewTicker(interval)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		s.mu.Lock()
		err := s.await(ctx)
		if err == nil {
			s.sendDue(time.Now())
		}
		s.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// sendDue sends what is due. s.mu is held.
func (s *session) sendDue(now time.Time) {
	o := &s.rec.Sent
	if s.rec.Mode == idle || s.rtp == nil {
		return
	}
	if s.rec.Mode == playing {
		for n := 0; n < maxBehind && !o.Due.After(now); n++ {
			if b, err := o.packet().Marshal(); err == nil {
				write(s.rtp, b)
			}
			o.Due = o.Due.Add(interval)
		}
	}
	if !o.Report.After(now) {
		o.Report = now.Add(reportEvery)
		if b, err := o.report(now, s.rec.Mode).Marshal(); err == nil {
			write(s.rtcp, b)
		}
	}
}

// write sends a datagram. That a port was closed is said of an earlier one, and this one is not sent then. A client that has gone says so on its
// connection.
func write(c *net.UDPConn, b []byte) {
	if _, err := c.Write(b); errors.Is(err, unix.ECONNREFUSED) {
		_, _ = c.Write(b)
	}
}

// packet makes the next packet: a tone that begins anew in each.
func (o *outgoing) packet() *rtp.Packet {
	p := &rtp.Packet{
		Header:  rtp.Header{Version: 2, PayloadType: 0, SequenceNumber: o.Sequence, Timestamp: o.Timestamp, SSRC: o.SSRC},
		Payload: make([]byte, samples),
	}
	for i := range p.Payload {
		p.Payload[i] = byte(i)
	}
	o.Sequence++
	o.Timestamp += samples
	o.Packets++
	return p
}

// ntpEpoch is how many seconds before 1970 the time of NTP begins.
const ntpEpoch = 2_208_988_800

// report makes a sender report, or a receiver's that says nothing of what has come.
func (o *outgoing) report(now time.Time, m mode) rtcp.Packet {
	if m == recording {
		return &rtcp.ReceiverReport{SSRC: o.SSRC}
	}
	fraction := uint64(now.Nanosecond()) << 32 / uint64(time.Second)
	return &rtcp.SenderReport{
		SSRC: o.SSRC, NTPTime: uint64(now.Unix()+ntpEpoch)<<32 | fraction, RTPTime: o.Timestamp, PacketCount: o.Packets, OctetCount: o.Packets * samples,
	}
}
