// SPDX-License-Identifier: Apache-2.0

package reqsk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/tcprepair"
)

// sockDestroy is SOCK_DESTROY of linux/sock_diag.h.
const sockDestroy = 21

// destroyer ends sockets by their flow (CONFIG_INET_DIAG_DESTROY).
type destroyer struct {
	mu  sync.Mutex
	fd  int
	seq uint32
}

func newDestroyer() (*destroyer, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return nil, fmt.Errorf("socket diagnosis: %w", err)
	}
	return &destroyer{fd: fd}, nil
}

// destroy ends the socket of a flow: one in TIME_WAIT silently, an established one with RST to the client. The error is ENOENT
// if there is none, EOPNOTSUPP if the kernel cannot.
func (d *destroyer) destroy(f tcprepair.Flow) error {
	const header, request = 16, 56
	b := make([]byte, header+request)
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	binary.NativeEndian.PutUint16(b[4:], sockDestroy)
	binary.NativeEndian.PutUint16(b[6:], unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	r := b[header:]
	r[0], r[1] = unix.AF_INET, unix.IPPROTO_TCP
	if f.Local.Addr().Is6() {
		r[0] = unix.AF_INET6
	}
	binary.BigEndian.PutUint16(r[8:], f.Local.Port())
	binary.BigEndian.PutUint16(r[10:], f.Remote.Port())
	copy(r[12:], f.Local.Addr().AsSlice())
	copy(r[28:], f.Remote.Addr().AsSlice())
	for i := range 8 { // any cookie
		r[48+i] = 0xff
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.seq++
	binary.NativeEndian.PutUint32(b[8:], d.seq)
	if err := unix.Sendto(d.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("destroy socket: %w", err)
	}
	return d.acknowledged()
}

func (d *destroyer) acknowledged() error {
	b := make([]byte, 4096)
	n, _, err := unix.Recvfrom(d.fd, b, 0)
	if err != nil {
		return fmt.Errorf("destroy socket: %w", err)
	}
	if n < 20 || binary.NativeEndian.Uint16(b[4:]) != unix.NLMSG_ERROR {
		return errors.New("destroy socket: unexpected answer")
	}
	if code := int32(binary.NativeEndian.Uint32(b[16:])); code != 0 {
		return fmt.Errorf("destroy socket: %w", unix.Errno(-code))
	}
	return nil
}

func (d *destroyer) close() error { return unix.Close(d.fd) }
