// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	netnslab "github.com/rehome-net/rehome/netns-lab"
	"github.com/rehome-net/rehome/tcprepair"
)

// keystroke is the time between two lines of the interactive client.
const keystroke = 5 * time.Millisecond

// connectWait bounds how long a client may take to connect.
const connectWait = 10 * time.Second

// watched is a client's socket, seen from outside: a descriptor taken from the client's process.
type watched struct {
	found chan struct{} // closed when the socket is known, or never will be
	f     tcprepair.Flow
	file  *os.File
	err   error
	info  netnslab.TCPInfo
}

func newWatched() watched { return watched{found: make(chan struct{})} }

// flow waits until the client has connected.
func (w *watched) flow(ctx context.Context) (tcprepair.Flow, error) {
	select {
	case <-w.found:
		return w.f, w.err
	case <-ctx.Done():
		return tcprepair.Flow{}, ctx.Err()
	}
}

// read takes the kernel's counts, at the end.
func (w *watched) read() error {
	if w.file == nil {
		return nil
	}
	var err error
	w.info, err = netnslab.ReadTCPInfo(w.file)
	return errors.Join(err, w.file.Close())
}

func (w *watched) clientResult(trace netnslab.Trace) ClientResult {
	flow := trace.Flow(w.f)
	again, _ := flow.From(w.f.Local).Retransmitted()
	return ClientResult{
		Connections: flow.From(w.f.Remote).Connections(), Resets: flow.From(w.f.Local).Resets(),
		RetransmissionTimeouts: int(w.info.Timeouts), Retransmitted: int(w.info.Retransmitted), RetransmittedToClient: again,
	}
}

// curl downloads url to memory's other side, or uploads a file to it.
type curl struct {
	host   *netnslab.Host
	url    string
	upload string

	watched
	download netnslab.Download
	sum      string
}

func (c *curl) name() string {
	if c.upload != "" {
		return "upload"
	}
	return "download"
}

// run runs curl and measures what comes out of it.
func (c *curl) run(ctx context.Context) error {
	args := []string{"--silent", "--show-error", "--fail", "--no-buffer"}
	if c.upload != "" {
		args = append(args, "--upload-file", c.upload)
	}
	cmd := c.host.Command(ctx, "curl", append(args, c.url)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, in, err := os.Pipe()
	if err != nil {
		return err
	}
	defer out.Close() //nolint:errcheck // read only
	cmd.Stdout = in
	if err := cmd.Start(); err != nil {
		_ = in.Close()
		return err
	}
	_ = in.Close()
	go c.watch(ctx, cmd.Process.Pid)
	streamErr := c.receive(ctx, out)
	waitErr := cmd.Wait()
	<-c.found
	if waitErr != nil {
		return fmt.Errorf("%s: curl: %w: %s", c.name(), waitErr, stderr.Bytes())
	}
	return errors.Join(streamErr, c.err, c.read())
}

// receive reads what curl writes: the file, or the server's answer to the upload, which is the body's sum.
func (c *curl) receive(ctx context.Context, out *os.File) error {
	if c.upload != "" {
		answer, err := io.ReadAll(out)
		c.sum = strings.TrimSpace(string(answer))
		return err
	}
	var err error
	c.download, err = netnslab.Stream(ctx, out, -1)
	c.sum = fmt.Sprintf("%x", c.download.SHA256)
	return err
}

// watch looks for the socket of the process.
func (c *curl) watch(ctx context.Context, pid int) {
	defer close(c.found)
	ctx, cancel := context.WithTimeout(ctx, connectWait)
	defer cancel()
	for {
		if c.f, c.file, c.err = socketOf(pid); c.err == nil {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Millisecond):
		}
	}
}

func (c *curl) result(trace netnslab.Trace) ClientResult {
	r := c.clientResult(trace)
	if c.upload == "" {
		r.LongestGapMillis = millis(c.download.LongestGap)
		r.MegabitsPerS = c.download.Rate() / 1e6
	} else {
		// What an uploading client feels is its kernel's: how long no acknowledgement came.
		r.LongestGapMillis = millis(trace.Flow(c.f).From(c.f.Local).LongestGap().Length)
	}
	return r
}

// typist is an interactive client: it types a line and waits for its echo.
type typist struct {
	host *netnslab.Host
	addr netip.AddrPort

	watched
	times netnslab.Latencies
}

func (t *typist) name() string { return "echo" }

// run types until ctx ends, which is the regular end.
func (t *typist) run(ctx context.Context) error {
	conn, err := t.connect(ctx)
	close(t.found)
	if err != nil {
		return err
	}
	t.times, err = netnslab.PingPong{Interval: keystroke}.Run(ctx, conn)
	info, ierr := netnslab.ReadTCPInfo(conn)
	t.info = info
	return errors.Join(err, ierr, conn.Close())
}

func (t *typist) connect(ctx context.Context) (*net.TCPConn, error) {
	ctx, cancel := context.WithTimeout(ctx, connectWait)
	defer cancel()
	c, err := t.host.Dial(ctx, "tcp", t.addr.String())
	if err != nil {
		t.err = err
		return nil, err
	}
	conn, ok := c.(*net.TCPConn)
	if !ok {
		t.err = fmt.Errorf("%T is no TCP connection", c)
		return nil, errors.Join(t.err, c.Close())
	}
	if t.f, t.err = flowOf(conn); t.err != nil {
		return nil, errors.Join(t.err, conn.Close())
	}
	return conn, nil
}

func (t *typist) result(trace netnslab.Trace) ClientResult {
	r := t.clientResult(trace)
	r.LongestGapMillis, r.Rounds = millis(t.times.Longest()), t.times.Len()
	return r
}

func millis(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// socketOf returns a TCP connection of a process and a descriptor of it.
func socketOf(pid int) (tcprepair.Flow, *os.File, error) {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return tcprepair.Flow{}, nil, os.NewSyscallError("pidfd_open", err)
	}
	defer unix.Close(pidfd) //nolint:errcheck // nothing was written
	entries, err := os.ReadDir("/proc/" + strconv.Itoa(pid) + "/fd")
	if err != nil {
		return tcprepair.Flow{}, nil, err
	}
	for _, e := range entries {
		n, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if target, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/fd/" + e.Name()); err != nil || !strings.HasPrefix(target, "socket:") {
			continue
		}
		fd, err := unix.PidfdGetfd(pidfd, n, 0)
		if err != nil {
			continue
		}
		file := os.NewFile(uintptr(fd), "socket")
		if f, err := flowOf(file); err == nil {
			return f, file, nil
		}
		_ = file.Close()
	}
	return tcprepair.Flow{}, nil, fmt.Errorf("process %d has no TCP connection", pid)
}

// flowOf names the connection of a client's socket as its server does.
func flowOf(file syscall.Conn) (tcprepair.Flow, error) {
	raw, err := file.SyscallConn()
	if err != nil {
		return tcprepair.Flow{}, err
	}
	var local, remote netip.AddrPort
	var serr error
	err = raw.Control(func(fd uintptr) {
		if local, serr = socketAddr(unix.Getsockname(int(fd))); serr == nil {
			remote, serr = socketAddr(unix.Getpeername(int(fd)))
		}
	})
	if err := errors.Join(err, serr); err != nil {
		return tcprepair.Flow{}, err
	}
	return tcprepair.NewFlow(remote, local), nil
}

func socketAddr(sa unix.Sockaddr, err error) (netip.AddrPort, error) {
	if err != nil {
		return netip.AddrPort{}, err
	}
	switch a := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port)), nil
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr).Unmap(), uint16(a.Port)), nil
	}
	return netip.AddrPort{}, errors.New("not an Internet socket")
}

// need reports a program that the scene cannot do without.
func need(programs ...string) error {
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			return fmt.Errorf("%s is needed: apt-get install %s", p, p)
		}
	}
	return nil
}
