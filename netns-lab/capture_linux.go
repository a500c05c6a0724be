// SPDX-License-Identifier: Apache-2.0

package netnslab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"
	"golang.org/x/sys/unix"
)

const (
	// defaultSnapLen holds every header: Ethernet, a VLAN tag, IPv6 and TCP with all options, and some extension headers.
	defaultSnapLen = 192
	maxSnapLen     = 65535 + frameExtra
	// defaultCaptureBuffer is the socket's, in bytes. A packet counts with all of its memory there, whatever the snap length.
	defaultCaptureBuffer = 64 << 20
	// defaultMaxSegments bounds a Trace: about 1 GiB.
	defaultMaxSegments = 8 << 20
)

// CaptureConfig says what to keep of the packets. The zero value keeps a Trace of all TCP headers.
type CaptureConfig struct {
	// Interface is where to listen, in the host; empty means eth0.
	Interface string
	// Pcap, if not nil, receives a pcap file with nanosecond timestamps. Checksums in it are unfinished where offload leaves them to the device. The capture
	// writes to it from its own goroutine until Close returns, and does not close it.
	Pcap io.Writer
	// SnapLen is how many bytes of each packet are read and written; 0 means 192.
	SnapLen int
	// Buffer is the socket's buffer in bytes; 0 means 64 MiB. What does not fit is counted in Trace.Missed.
	Buffer int
	// MaxSegments bounds the trace; further packets are counted in Trace.Missed. 0 means 8 Mi.
	MaxSegments int
}

func (c CaptureConfig) withDefaults() (CaptureConfig, error) {
	if c.Interface == "" {
		c.Interface = Interface
	}
	if c.SnapLen == 0 {
		c.SnapLen = defaultSnapLen
	}
	if c.Buffer == 0 {
		c.Buffer = defaultCaptureBuffer
	}
	if c.MaxSegments == 0 {
		c.MaxSegments = defaultMaxSegments
	}
	if c.SnapLen < 0 || c.SnapLen > maxSnapLen || c.Buffer < 0 || c.MaxSegments < 0 {
		return c, fmt.Errorf("capture: snap length %d, buffer %d, segments %d: want none negative and a snap length up to %d",
			c.SnapLen, c.Buffer, c.MaxSegments, maxSnapLen)
	}
	return c, nil
}

// Capture is a running packet capture, made by Host.Capture and ended by Close.
type Capture struct {
	cfg    CaptureConfig
	fd     int // packet socket, owned
	stop   int // eventfd, owned
	done   chan error
	trace  Trace // the goroutine's until done
	closed bool
}

// Capture starts to capture on the host, in both directions. Every packet from its return to the call of Close is in the trace, or counted as missed.
func (h *Host) Capture(cfg CaptureConfig) (*Capture, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	c := &Capture{cfg: cfg, done: make(chan error, 1), stop: -1, fd: -1}
	if err := h.Do(c.open); err != nil {
		return nil, errors.Join(fmt.Errorf("capture on %s of %s: %w", cfg.Interface, h.spec.Name, err), c.free())
	}
	var pcap *pcapgo.Writer
	if cfg.Pcap != nil {
		pcap = pcapgo.NewWriterNanos(cfg.Pcap)
		if err := pcap.WriteFileHeader(uint32(cfg.SnapLen), layers.LinkTypeEthernet); err != nil {
			return nil, errors.Join(fmt.Errorf("capture: pcap header: %w", err), c.free())
		}
	}
	go func() { c.done <- c.run(pcap) }()
	return c, nil
}

// open makes the socket in the namespace of the calling thread.
func (c *Capture) open() error {
	var err error
	if c.stop, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return os.NewSyscallError("eventfd", err)
	}
	// Protocol 0 receives nothing, so that no packet of another interface comes in before bind.
	if c.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0); err != nil {
		return fmt.Errorf("packet socket (wants CAP_NET_RAW): %w", err)
	}
	for _, o := range []struct{ level, name, value int }{
		{unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, c.cfg.Buffer},
		{unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1},
	} {
		if err := unix.SetsockoptInt(c.fd, o.level, o.name, o.value); err != nil {
			return fmt.Errorf("packet socket option %d: %w", o.name, err)
		}
	}
	req, err := unix.NewIfreq(c.cfg.Interface)
	if err != nil {
		return fmt.Errorf("interface %q: %w", c.cfg.Interface, err)
	}
	if err := unix.IoctlIfreq(c.fd, unix.SIOCGIFINDEX, req); err != nil {
		return fmt.Errorf("interface %q: %w", c.cfg.Interface, err)
	}
	addr := &unix.SockaddrLinklayer{Protocol: networkOrder(unix.ETH_P_ALL), Ifindex: int(req.Uint32())}
	return os.NewSyscallError("bind", unix.Bind(c.fd, addr))
}

func networkOrder(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}

// run reads until stop is readable, and then what is still queued.
func (c *Capture) run(pcap *pcapgo.Writer) error {
	parser := newSegmentParser()
	frame := make([]byte, c.cfg.SnapLen)
	oob := make([]byte, 256)
	for stopping := false; ; {
		for {
			more, err := c.read(parser, pcap, frame, oob)
			if err != nil {
				return err
			}
			if !more {
				break
			}
		}
		if stopping {
			return nil
		}
		fds := [2]unix.PollFd{{Fd: int32(c.fd), Events: unix.POLLIN}, {Fd: int32(c.stop), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds[:], -1); err != nil && !errors.Is(err, unix.EINTR) {
			return os.NewSyscallError("poll", err)
		}
		stopping = fds[1].Revents != 0
	}
}

// read takes one packet; false if none is queued.
func (c *Capture) read(parser *segmentParser, pcap *pcapgo.Writer, frame, oob []byte) (bool, error) {
	// With MSG_TRUNC the returned length is the packet's own, however little fits into frame.
	n, oobn, _, from, err := unix.Recvmsg(c.fd, frame, oob, unix.MSG_TRUNC)
	switch {
	case errors.Is(err, unix.EAGAIN):
		return false, nil
	case errors.Is(err, unix.EINTR), errors.Is(err, unix.ENETDOWN):
		return true, nil
	case err != nil:
		return false, os.NewSyscallError("recvmsg", err)
	}
	at := timestamp(oob[:oobn])
	data := frame[:min(n, len(frame))]
	if pcap != nil {
		info := gopacket.CaptureInfo{Timestamp: at, CaptureLength: len(data), Length: n}
		if err := pcap.WritePacket(info, data); err != nil {
			return false, fmt.Errorf("capture: pcap: %w", err)
		}
	}
	s, ok := parser.parse(data)
	switch {
	case !ok:
		c.trace.Others++
	case len(c.trace.Segments) >= c.cfg.MaxSegments:
		c.trace.Missed++
	default:
		s.Time = at
		ll, isLink := from.(*unix.SockaddrLinklayer)
		s.Sent = isLink && ll.Pkttype == unix.PACKET_OUTGOING
		c.trace.Segments = append(c.trace.Segments, s)
	}
	return true, nil
}

// timestamp returns the kernel's time of the packet; the present if it gave none.
func timestamp(oob []byte) time.Time {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return time.Now()
	}
	for _, m := range messages {
		if m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SCM_TIMESTAMPNS && len(m.Data) >= 16 { // a struct timespec
			return time.Unix(int64(binary.NativeEndian.Uint64(m.Data)), int64(binary.NativeEndian.Uint64(m.Data[8:])))
		}
	}
	return time.Now()
}

// Close ends the capture and returns what it saw. A second call is ErrClosed.
func (c *Capture) Close() (Trace, error) {
	if c.closed {
		return Trace{}, fmt.Errorf("capture: %w", ErrClosed)
	}
	c.closed = true
	_, err := unix.Write(c.stop, binary.NativeEndian.AppendUint64(nil, 1))
	if err == nil {
		err = <-c.done
	}
	stats, serr := unix.GetsockoptTpacketStats(c.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if serr == nil {
		c.trace.Missed += int(stats.Drops)
	}
	return c.trace, errors.Join(err, os.NewSyscallError("getsockopt", serr), c.free())
}

func (c *Capture) free() error {
	var errs []error
	for _, fd := range []int{c.fd, c.stop} {
		if fd >= 0 {
			errs = append(errs, unix.Close(fd))
		}
	}
	c.fd, c.stop = -1, -1
	return errors.Join(errs...)
}
