// SPDX-License-Identifier: Apache-2.0

package report

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxFile bounds what is read of a file of /proc.
	maxFile = 1 << 20
	// maxListeners bounds what is kept of the kernel's answer.
	maxListeners = 65536
	// diagTimeout bounds the wait for an answer that does not come.
	diagTimeout = time.Second
)

// kernel reads. It is for one goroutine.
type kernel struct {
	proc string // where /proc is
	diag int    // a socket for sock_diag; -1 when there is none
	buf  []byte
}

func openKernel(proc string) *kernel {
	return &kernel{proc: proc, diag: -1, buf: make([]byte, 64<<10)}
}

// openDiag opens the socket for sock_diag, unless it is.
func (k *kernel) openDiag() (err error) {
	if k.diag >= 0 {
		return nil
	}
	if k.diag, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG); err != nil {
		k.diag = -1
		return err
	}
	limit := unix.NsecToTimeval(int64(diagTimeout))
	return unix.SetsockoptTimeval(k.diag, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit)
}

func (k *kernel) close() {
	if k.diag >= 0 {
		_ = unix.Close(k.diag)
		k.diag = -1
	}
}

// read returns what there is to know now, and what could not be read.
func (k *kernel) read() (*reading, error) {
	r := &reading{at: time.Now()}
	var errs []error
	note := func(err error) {
		if err != nil {
			errs = append(errs, err)
		}
	}
	note(parseInto(&r.cpu, k, "stat", parseStat))
	note(parseInto(&r.memory, k, "meminfo", parseMeminfo))
	note(parseInto(&r.stalledMemory, k, "pressure/memory", func(text string) (time.Duration, error) { return parsePressure(text, "full") }))
	if err := parseInto(&r.stalledIO, k, "pressure/io", func(text string) (time.Duration, error) { return parsePressure(text, "some") }); err != nil {
		text, err := k.file("diskstats")
		if err == nil {
			r.disks, err = parseDiskstats(text)
		}
		note(err)
	}
	var err error
	r.network, err = k.network()
	note(err)
	r.listeners, err = k.listeners()
	r.listened = err == nil
	note(err)
	return r, errors.Join(errs...)
}

func parseInto[T any](to **T, k *kernel, name string, parse func(string) (T, error)) error {
	text, err := k.file(name)
	if err != nil {
		return err
	}
	v, err := parse(text)
	if err != nil {
		return err
	}
	*to = &v
	return nil
}

func (k *kernel) file(name string) (string, error) {
	f, err := os.Open(filepath.Join(k.proc, name))
	if err != nil {
		return "", err
	}
	defer f.Close() //nolint:errcheck // read only
	b, err := io.ReadAll(io.LimitReader(f, maxFile))
	return string(b), err
}

// network returns the fill of the socket buffers of TCP and UDP. The limits stand in the first network namespace only.
func (k *kernel) network() (fills []fill, err error) {
	stat, err := k.file("net/sockstat")
	if err != nil {
		return nil, err
	}
	for protocol, limit := range map[string]string{"TCP": "tcp_mem", "UDP": "udp_mem"} {
		text, err := k.file("sys/net/ipv4/" + limit)
		if err != nil {
			return nil, err
		}
		var f fill
		if f.limit, err = parseLimit(text); err != nil {
			return nil, err
		}
		if f.pages, err = parseSockstat(stat, protocol); err != nil {
			return nil, err
		}
		fills = append(fills, f)
	}
	return fills, nil
}

// listeners asks for the TCP listeners of this network namespace.
func (k *kernel) listeners() (all []listener, err error) {
	defer func() {
		if err != nil {
			k.close() // what is left of this answer must not be taken for the next
			err = fmt.Errorf("sock_diag: %w", err)
		}
	}()
	if err := k.openDiag(); err != nil {
		return nil, err
	}
	for _, family := range []byte{familyIPv4, familyIPv6} {
		if err := k.ask(family, 1<<stateListen, 0); err != nil {
			return nil, err
		}
		for done := false; !done; {
			n, _, err := unix.Recvfrom(k.diag, k.buf, 0)
			if err != nil {
				return nil, err
			}
			if all, done, err = parseAnswer(all, k.buf[:n]); err != nil {
				return nil, err
			}
		}
	}
	return all, nil
}

// ask sends an inet_diag_req_v2 for all sockets in some states, at a local port unless that is 0.
func (k *kernel) ask(family byte, states uint32, port uint16) error {
	const header, request = 16, 56
	b := make([]byte, header+request)
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	binary.NativeEndian.PutUint16(b[4:], unix.SOCK_DIAG_BY_FAMILY)
	binary.NativeEndian.PutUint16(b[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	r := b[header:]
	r[0], r[1] = family, unix.IPPROTO_TCP
	binary.NativeEndian.PutUint32(r[4:], states)
	binary.BigEndian.PutUint16(r[8:], port) // id.idiag_sport
	return unix.Sendto(k.diag, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
}

// parseAnswer adds what one datagram of the kernel's says; done is set when it was the last.
func parseAnswer(all []listener, b []byte) (_ []listener, done bool, err error) {
	messages, err := syscall.ParseNetlinkMessage(b)
	if err != nil {
		return nil, false, err
	}
	for _, m := range messages {
		switch m.Header.Type {
		case unix.NLMSG_DONE:
			return all, true, nil
		case unix.NLMSG_ERROR:
			return nil, false, fmt.Errorf("%w: refused", errFormat)
		}
		l, err := parseListener(m.Data)
		if err != nil {
			return nil, false, err
		}
		if len(all) < maxListeners {
			all = append(all, l)
		}
	}
	return all, false, nil
}
