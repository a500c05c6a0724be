// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"errors"
	"fmt"
	"net"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/tcprepair"
)

// ethernetHeader is the length of a frame's header, in bytes.
const ethernetHeader = 14

// way is how a node is reached.
type way struct {
	ifindex  int
	dst, src net.HardwareAddr
}

// wire puts single packets where they belong: out of an interface, or into this host's own stack. It needs CAP_NET_RAW.
type wire struct {
	frames int    // AF_PACKET; it receives nothing
	local  [2]int // raw IPv4 and IPv6
}

func openWire() (_ *wire, err error) {
	w := &wire{frames: -1, local: [2]int{-1, -1}}
	defer func() {
		if err != nil {
			_ = w.close()
		}
	}()
	const flags = unix.SOCK_RAW | unix.SOCK_CLOEXEC
	if w.frames, err = unix.Socket(unix.AF_PACKET, flags, 0); err != nil {
		return nil, fmt.Errorf("packet socket (CAP_NET_RAW): %w", err)
	}
	if w.local[0], err = unix.Socket(unix.AF_INET, flags, unix.IPPROTO_RAW); err != nil {
		return nil, fmt.Errorf("raw socket (CAP_NET_RAW): %w", err)
	}
	if w.local[1], err = unix.Socket(unix.AF_INET6, flags, unix.IPPROTO_RAW); errors.Is(err, unix.EAFNOSUPPORT) {
		return w, nil // a kernel without IPv6 has no such flow
	}
	if err != nil {
		return nil, fmt.Errorf("raw socket (CAP_NET_RAW): %w", err)
	}
	return w, nil
}

// send sends frames to a node, with other link-layer addresses.
func (w *wire) send(to way, frames [][]byte) error {
	at := &unix.SockaddrLinklayer{Ifindex: to.ifindex, Halen: 6}
	copy(at.Addr[:], to.dst)
	for i, f := range frames {
		b := slices.Concat(to.dst, to.src, f[2*len(to.dst):])
		at.Protocol = uint16(b[13])<<8 | uint16(b[12]) // in network order
		if err := uninterrupted(func() error { return unix.Sendto(w.frames, b, 0, at) }); err != nil {
			return fmt.Errorf("%d of %d frames lost: send: %w", len(frames)-i, len(frames), err)
		}
	}
	return nil
}

// deliver gives frames to this host's stack. They take the route of what the host sends itself, so that neither the gate nor a filter of
// source addresses is asked.
func (w *wire) deliver(f tcprepair.Flow, frames [][]byte) error {
	fd := w.local[1]
	var to unix.Sockaddr = &unix.SockaddrInet6{Addr: f.Local.Addr().As16()}
	if a := f.Local.Addr(); a.Is4() {
		fd, to = w.local[0], &unix.SockaddrInet4{Addr: a.As4()}
	}
	for i, frame := range frames {
		if err := uninterrupted(func() error { return unix.Sendto(fd, frame[ethernetHeader:], 0, to) }); err != nil {
			return fmt.Errorf("%d of %d frames lost: raw socket: %w", len(frames)-i, len(frames), err)
		}
	}
	return nil
}

// uninterrupted repeats a system call that a signal ended.
func uninterrupted(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func (w *wire) close() error {
	var errs []error
	for _, fd := range []int{w.frames, w.local[0], w.local[1]} {
		if fd >= 0 {
			errs = append(errs, unix.Close(fd))
		}
	}
	return errors.Join(errs...)
}
