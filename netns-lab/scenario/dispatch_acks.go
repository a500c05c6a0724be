// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	netnslab "github.com/rehome-net/rehome/netns-lab"
)

// AckCost is what the way of an acknowledgement from the client into the server's socket costs, in ns of the one processor that does all of it:
// a write to a packet socket, and every softirq that follows. It contains what the write itself takes.
type AckCost struct {
	// Direct goes from the client to the server's hardware address, Front to the front's and from there to the server.
	Direct, Front Quantiles
}

// ackBatch is how many acknowledgements are timed together.
const ackBatch = 1000

// MeasureAckCost repeats the last acknowledgement of a kept connection through a front, which must forward packets as they are, in turns with
// the same to the server itself, so many batches each. The quantiles are those of the batches' means. Unlike a download it does not depend on what
// the processors wait for.
func MeasureAckCost(ctx context.Context, f *Farm, front Front, batches int) (AckCost, error) {
	target, err := front.Target(f, Files, false)
	if err != nil {
		return AckCost{}, err
	}
	conn, err := f.Client().Dial(ctx, "tcp4", target.String())
	if err != nil {
		return AckCost{}, err
	}
	defer conn.Close() //nolint:errcheck // nothing is on its way
	server, err := f.host(NginxHost).Link()
	if err != nil {
		return AckCost{}, err
	}
	var cost AckCost
	err = f.Client().Do(func() error {
		frame, err := lastAck(conn)
		if err != nil {
			return err
		}
		cost, err = repeatAck(ctx, frame, server.MAC, batches)
		return err
	})
	if err != nil {
		return AckCost{}, err
	}
	after, err := f.host(NginxHost).Link()
	if err != nil {
		return AckCost{}, err
	}
	if got, want := after.Received.Packets-server.Received.Packets, uint64(2*batches*ackBatch); got < want {
		return AckCost{}, fmt.Errorf("%d of %d acknowledgements have come to the server", got, want)
	}
	return cost, nil
}

// lastAck sends a short request and returns the frame with the acknowledgement of its answer.
func lastAck(conn net.Conn) (frame []byte, err error) {
	fd, err := frameSocket(unix.ETH_P_ALL)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.NewSyscallError("close", unix.Close(fd))) }()
	limit := unix.NsecToTimeval(int64(askTimeout))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit); err != nil {
		return nil, os.NewSyscallError("setsockopt", err)
	}
	if _, err := conn.Write([]byte(shortRequest)); err != nil {
		return nil, err
	}
	answer := make([]byte, 4096)
	if _, err := conn.Read(answer); err != nil {
		return nil, err
	}
	local, ok := conn.LocalAddr().(*net.TCPAddr)
	if !ok {
		return nil, fmt.Errorf("local address %v", conn.LocalAddr())
	}
	buf := make([]byte, 2048)
	for acked := false; ; {
		n, err := uninterrupted(func() (int, error) { return unix.Read(fd, buf) })
		if err != nil {
			return nil, fmt.Errorf("wait for the acknowledgement: %w", err)
		}
		payload, ours := payloadFrom(buf[:n], uint16(local.Port))
		if ours && payload == 0 && acked {
			return slices.Clone(buf[:n]), nil
		}
		acked = acked || ours && payload > 0 // the handshake's own comes before the request
	}
}

// payloadFrom returns how many bytes of data a TCP segment over IPv4 has; false if it is none, or not from the port.
func payloadFrom(frame []byte, port uint16) (int, bool) {
	const ethernet, ip, tcp = 14, 20, 20
	if len(frame) < ethernet+ip+tcp || binary.BigEndian.Uint16(frame[12:]) != unix.ETH_P_IP || frame[ethernet] != 0x45 || frame[ethernet+9] != unix.IPPROTO_TCP {
		return 0, false
	}
	segment := frame[ethernet+ip:]
	n := int(binary.BigEndian.Uint16(frame[ethernet+2:])) - ip - int(segment[12]>>4)*4
	return n, n >= 0 && binary.BigEndian.Uint16(segment) == port
}

// repeatAck sends the frame to where it went, and to another hardware address, in turns.
func repeatAck(ctx context.Context, frame []byte, server net.HardwareAddr, batches int) (cost AckCost, err error) {
	fd, err := frameSocket(0)
	if err != nil {
		return cost, err
	}
	defer func() { err = errors.Join(err, os.NewSyscallError("close", unix.Close(fd))) }()
	direct := slices.Clone(frame)
	copy(direct, server)
	frames, times := [2][]byte{direct, frame}, [2][]int64{}
	for range batches {
		if err := ctx.Err(); err != nil {
			return cost, err
		}
		for i := range frames {
			begin := time.Now()
			for range ackBatch {
				if _, err := uninterrupted(func() (int, error) { return unix.Write(fd, frames[i]) }); err != nil {
					return cost, os.NewSyscallError("write", err)
				}
			}
			times[i] = append(times[i], int64(time.Since(begin)/ackBatch))
		}
	}
	return AckCost{Direct: quantiles(times[0]), Front: quantiles(times[1])}, nil
}

// frameSocket makes a packet socket at the interface of the calling thread's namespace. With protocol 0 it is shown nothing.
func frameSocket(protocol uint16) (int, error) {
	at, err := net.InterfaceByName(netnslab.Interface)
	if err != nil {
		return -1, err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	order := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, protocol))
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: order, Ifindex: at.Index}); err != nil {
		return -1, errors.Join(os.NewSyscallError("bind", err), unix.Close(fd))
	}
	return fd, nil
}
