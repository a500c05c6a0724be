// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/tcprepair"
)

// descriptor passes the connection's descriptor to a server that takes them on a UNIX socket.
type descriptor struct {
	restoring
	flow   tcprepair.Flow
	path   string
	socket int
}

func (d *descriptor) prepare(s *tcprepair.Snapshot) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("descriptors socket: %w", err)
	}
	d.socket = fd
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: d.path}); err != nil {
		return fmt.Errorf("connect to %s: %w: does the server listen there?", d.path, err)
	}
	return d.restoring.prepare(s)
}

func (d *descriptor) deliver(done func(error)) { done(d.pass()) }

// pass sends one message: the descriptor, and the two addresses as a line of text.
func (d *descriptor) pass() error {
	fd, err := d.thaw()
	if err == nil {
		line := fmt.Sprintf("%v %v\n", d.flow.Remote, d.flow.Local)
		if err = unix.Sendmsg(d.socket, []byte(line), unix.UnixRights(fd), nil, unix.MSG_NOSIGNAL); err != nil {
			err = fmt.Errorf("pass the descriptor to %s: %w", d.path, err)
			_ = tcprepair.Freeze(fd)
			_ = tcprepair.Discard(fd)
		} else {
			d.e.untaken.keep(d.socket)
			d.socket = -1
		}
		_ = unix.Close(fd)
	}
	d.close()
	return err
}

func (d *descriptor) discard() {
	d.restoring.discard()
	d.close()
}

func (d *descriptor) close() {
	if d.socket >= 0 {
		_ = unix.Close(d.socket)
		d.socket = -1
	}
}
