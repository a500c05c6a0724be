// SPDX-License-Identifier: Apache-2.0

package shortcut

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	tries = 3
	// patience is how long an answer may take. Neighbours are on the same Ethernet.
	patience = 200 * time.Millisecond
)

// Prove returns nil when a neighbour has answered an ARP request that went out of an interface by the shortcut. It must be called on a thread
// that stays in the interface's namespace (runtime.LockOSThread), takes less than a second, and leaves nothing behind.
//
// Errors to expect: ErrNoNeighbour, ErrLost.
func Prove(nl *netlink.Handle, ifindex int, neighbours []netip.Addr) (err error) {
	if len(neighbours) == 0 {
		return ErrNoNeighbour
	}
	l, err := nl.LinkByIndex(ifindex)
	if err != nil {
		return fmt.Errorf("interface %d: %w", ifindex, err)
	}
	mac := l.Attrs().HardwareAddr
	answers, err := listen(ifindex)
	if err != nil {
		return err
	}
	defer unix.Close(answers) //nolint:errcheck // nothing was written
	s, err := newSlide(nl, ifindex)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	for range tries {
		for _, a := range neighbours {
			if _, err := s.file.Write(Question(mac, a)); err != nil {
				return fmt.Errorf("write to the tap: %w", err)
			}
		}
		if ok, err := await(answers, mac, neighbours); ok || err != nil {
			return err
		}
	}
	return fmt.Errorf("%w from %v", ErrLost, neighbours)
}

// listen makes a socket that is shown the ARP packets an interface receives.
func listen(ifindex int) (int, error) {
	const order = etherARP&0xff<<8 | etherARP>>8 // network order
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, fmt.Errorf("packet socket (CAP_NET_RAW): %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: order, Ifindex: ifindex}); err != nil {
		return -1, errors.Join(fmt.Errorf("bind a packet socket: %w", err), unix.Close(fd))
	}
	return fd, nil
}

// await reads until one of those asked has answered; false after patience.
func await(fd int, mac net.HardwareAddr, asked []netip.Addr) (bool, error) {
	b := make([]byte, 256)
	for end := time.Now().Add(patience); ; {
		n, err := unix.Read(fd, b)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			left := time.Until(end)
			if left <= 0 {
				return false, nil
			}
			ready := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
			if _, err := unix.Poll(ready, int(left/time.Millisecond)+1); err != nil && !errors.Is(err, unix.EINTR) {
				return false, fmt.Errorf("wait for answers: %w", err)
			}
			continue
		case err != nil:
			return false, fmt.Errorf("read answers: %w", err)
		}
		if a := answerOf(mac, b[:n]); a.IsValid() && slices.Contains(asked, a) {
			return true, nil
		}
	}
}

// slide is a tap whose frames go out of an interface by the shortcut: bpf_redirect_peer works at a way in only.
type slide struct {
	file    *os.File
	program *ebpf.Program
	link    link.Link
}

func newSlide(nl *netlink.Handle, ifindex int) (_ *slide, err error) {
	s := &slide{}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	var name string
	if s.file, name, err = newTap(); err != nil {
		return nil, err
	}
	// It has nothing to say of its own.
	quiet := "/proc/sys/net/ipv6/conf/" + name + "/disable_ipv6"
	if err := os.WriteFile(quiet, []byte("1"), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("silence IPv6 on the tap: %w", err)
	}
	at, err := nl.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("tap %s: %w", name, err)
	}
	s.program, err = ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "rehome_slide", Type: ebpf.SchedCLS, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{
			asm.Mov.Imm(asm.R1, int32(ifindex)),
			asm.Mov.Imm(asm.R2, 0),
			asm.FnRedirectPeer.Call(),
			asm.Return(),
		},
	})
	if err != nil {
		return nil, fmt.Errorf("load a program with bpf_redirect_peer (Linux 5.10): %w", err)
	}
	s.link, err = link.AttachTCX(link.TCXOptions{Interface: at.Attrs().Index, Program: s.program, Attach: ebpf.AttachTCXIngress})
	if err != nil {
		return nil, fmt.Errorf("attach to the tap (Linux 6.6): %w", err)
	}
	if err := errors.Join(nl.LinkSetARPOff(at), nl.LinkSetUp(at)); err != nil {
		return nil, fmt.Errorf("tap %s: %w", name, err)
	}
	return s, nil
}

// newTap makes a tap that goes with the file.
func newTap() (_ *os.File, name string, err error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, "", fmt.Errorf("open /dev/net/tun (CONFIG_TUN, and the device in a container): %w", err)
	}
	request, err := unix.NewIfreq("rhprobe%d")
	if err != nil {
		return nil, "", errors.Join(err, unix.Close(fd))
	}
	request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		return nil, "", errors.Join(fmt.Errorf("make a tap: %w", err), unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), request.Name()), request.Name(), nil
}

func (s *slide) close() error {
	var errs []error
	if s.link != nil {
		errs = append(errs, s.link.Close())
	}
	if s.program != nil {
		errs = append(errs, s.program.Close())
	}
	if s.file != nil {
		errs = append(errs, s.file.Close())
	}
	return errors.Join(errs...)
}
