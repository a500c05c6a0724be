// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// takeTime is how long a server may leave a message with a descriptor where it is, before the agent's end of the socket is closed all the same.
const takeTime = time.Minute

// untaken keeps the UNIX sockets open over which connections have been sent to servers, each until its message has been taken.
//
// A sender's close must not come earlier: a server that asks for the message without waiting (MSG_DONTWAIT), in the very moment in which it is
// sent and the socket closed, is told that there is none and that it is the end. The kernel looks for the message first, and for the
// end after that (unix_dgram_recvmsg, seen on Linux 6.18). The server would close its own end then, and the client's connection with it.
type untaken struct {
	mu      sync.Mutex
	sockets map[*os.File]struct{}
	group   sync.WaitGroup
}

// keep owns a non-blocking socket from now on.
func (u *untaken) keep(socket int) {
	file := os.NewFile(uintptr(socket), "server of descriptors")
	_ = file.SetWriteDeadline(time.Now().Add(takeTime))
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.sockets == nil {
		u.sockets = make(map[*os.File]struct{})
	}
	u.sockets[file] = struct{}{}
	u.group.Go(func() {
		awaitTaken(file)
		u.mu.Lock()
		defer u.mu.Unlock()
		delete(u.sockets, file)
		_ = file.Close() // nothing was written
	})
}

// end gives the servers that have not taken their messages yet some time, and returns when all sockets are closed. Nothing is to be kept any more.
func (u *untaken) end(patience time.Duration) {
	u.mu.Lock()
	for file := range u.sockets {
		_ = file.SetWriteDeadline(time.Now().Add(patience))
	}
	u.mu.Unlock()
	u.group.Wait()
}

// awaitTaken returns when what was sent has been received, or is lost with its receiver, or the file's deadline is over. Memory that comes free
// makes the socket writable anew, which wakes who waits for that.
func awaitTaken(file *os.File) {
	raw, err := file.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Write(func(fd uintptr) bool {
		// The last byte of what a message has taken is given back a moment after the others, and wakes nobody.
		const freed = 1
		n, err := unix.IoctlGetInt(int(fd), unix.TIOCOUTQ)
		return err != nil || n <= freed
	})
}
