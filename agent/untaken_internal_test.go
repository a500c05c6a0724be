// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/netns-lab/leakcheck"
)

// socketPair returns an agent's end and a server's end.
func socketPair(t *testing.T) (agent, server int) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return fds[0], fds[1]
}

// take asks for a message until there is one, without ever waiting, as a server with a busy loop does.
func take(socket int, patience time.Duration) (n int, err error) {
	var text [64]byte
	for until := time.Now().Add(patience); ; {
		n, err = unix.Read(socket, text[:])
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) || time.Now().After(until) {
			return n, err
		}
	}
}

// ended reports whether the agent's end has been closed.
func ended(t *testing.T, server int) bool {
	t.Helper()
	p := []unix.PollFd{{Fd: int32(server), Events: unix.POLLRDHUP}}
	if _, err := unix.Poll(p, 0); err != nil {
		t.Fatal(err)
	}
	return p[0].Revents&(unix.POLLRDHUP|unix.POLLHUP) != 0
}

// TestUntakenRace sends to servers that ask all the time. Each gets the message before the end.
func TestUntakenRace(t *testing.T) {
	const messages, enough = 30000, 2 * time.Second
	var u untaken
	line := []byte("192.0.2.1:1 192.0.2.2:2\n")
	begin, failures := time.Now(), 0
	sockets := make(chan int)
	defer close(sockets)
	go func() {
		runtime.LockOSThread()
		for s := range sockets {
			if err := unix.Sendmsg(s, line, nil, nil, unix.MSG_NOSIGNAL); err != nil {
				t.Error(err)
			}
			u.keep(s)
		}
	}()
	sent := 0
	for ; sent < messages && time.Since(begin) < enough; sent++ {
		agent, server := socketPair(t)
		sockets <- agent
		if n, err := take(server, 10*time.Second); n != len(line) || err != nil {
			failures++
			if failures == 1 {
				again, err2 := take(server, 0)
				t.Errorf("the server got %d bytes, %v, and when it asked again %d, %v", n, err, again, err2)
			}
		}
		if err := unix.Close(server); err != nil {
			t.Fatal(err)
		}
	}
	if failures != 0 {
		t.Errorf("%d of %d servers were told of the end before the message", failures, sent)
	}
	u.end(0)
}

// TestUntakenEnds lets a message be taken, lost, or left where it is.
func TestUntakenEnds(t *testing.T) {
	const patience = 20 * time.Millisecond
	for _, tt := range []struct {
		name string
		act  func(server int) error
		// left means that the socket is kept until the end.
		left bool
	}{
		{"taken", func(server int) error {
			_, err := take(server, time.Second)
			return err
		}, false},
		{"the server is gone", unix.Close, false},
		{"left", func(int) error { return nil }, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			leakcheck.Check(t, leakcheck.Config{})
			var u untaken
			agent, server := socketPair(t)
			if err := unix.Sendmsg(agent, []byte("x"), nil, nil, unix.MSG_NOSIGNAL); err != nil {
				t.Fatal(err)
			}
			u.keep(agent)
			if ended(t, server) {
				t.Error("the server can see the end while the message is still there")
			}
			if err := tt.act(server); err != nil {
				t.Fatal(err)
			}
			if tt.left {
				begin := time.Now()
				u.end(patience)
				if took := time.Since(begin); took < patience {
					t.Errorf("it was kept for %v, want %v", took, patience)
				}
				// Who comes late finds the message all the same, and then the end.
				if n, err := take(server, 0); n != 1 || err != nil {
					t.Errorf("afterwards the server gets %d bytes, %v", n, err)
				}
			} else {
				u.group.Wait()
			}
			if len(u.sockets) != 0 {
				t.Errorf("%d sockets are left", len(u.sockets))
			}
			if tt.name != "the server is gone" {
				if n, err := take(server, time.Second); n != 0 || err != nil {
					t.Errorf("at the end the server gets %d bytes, %v; want EOF", n, err)
				}
				if err := unix.Close(server); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}
