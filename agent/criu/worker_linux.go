// SPDX-License-Identifier: Apache-2.0

package criu

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"

	"github.com/checkpoint-restore/go-criu/v7/rpc"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// maxMessage bounds one message from CRIU, in bytes. A version of the protocol has messages of some hundred bytes.
const maxMessage = 64 << 10

// Descriptors that CRIU is started with, by number.
const (
	socketFD = 3
	imageFD  = 4
	lifeFD   = 5 // of Init, as those that follow
	// What Init needs for memory that follows: the directory of the CRIU that fetches it, that one's connection to the agent, the agent's end of
	// it, where CRIU says that it is ready, and where Init says that everything has come.
	lazyDirFD    = 6
	fetchFD      = 7
	fetchAgentFD = 8
	readyFD      = 9
	fetchedFD    = 10
	// firstPipeFD is the first of those that a tree's memory is written to, when dumping.
	firstPipeFD = 5
)

// worker is a running CRIU that waits for one request (criu swrk). It has its own process; whoever makes one ends it with close.
type worker struct {
	socket *os.File
	// ended is closed when the process that was started has ended; it is nil where somebody else waits for it.
	ended <-chan struct{}
}

// socketPair returns the two ends of what CRIU is talked to over. Both are close-on-exec.
func socketPair() (ours, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "criu"), os.NewFile(uintptr(fds[1]), "criu"), nil
}

// endedSocket returns one end of a connection whose other end is closed.
func endedSocket() (*os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socketpair: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "ended"), unix.Close(fds[1])
}

// explain says what to do about a CRIU that cannot be started.
func explain(path string, err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%w (%s: %w)", ErrMissing, path, err)
	}
	return fmt.Errorf("start %s: %w", path, err)
}

// send writes one message.
func (w *worker) send(m *rpc.CriuReq) error {
	b, err := proto.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode a request: %w", err)
	}
	if _, err := w.socket.Write(b); err != nil {
		return fmt.Errorf("%w: %w", ErrGone, err)
	}
	return nil
}

// receive reads one message.
func (w *worker) receive() (*rpc.CriuResp, error) {
	b := make([]byte, maxMessage)
	n, err := w.socket.Read(b)
	if err != nil || n == 0 {
		return nil, ErrGone
	}
	m := &rpc.CriuResp{}
	if err := proto.Unmarshal(b[:n], m); err != nil {
		return nil, fmt.Errorf("decode an answer: %w", err)
	}
	return m, nil
}

// hooks are called when CRIU has come to a place; an error from one makes CRIU undo what it has done. Places without one are passed.
type hooks map[string]func() error

// call makes a request and returns its answer. What a hook returns is part of the error.
func (w *worker) call(req *rpc.CriuReq, h hooks) (*rpc.CriuResp, error) {
	if err := w.send(req); err != nil {
		return nil, err
	}
	return w.await(req.GetType(), h)
}

// await returns the answer to a request that has been sent.
func (w *worker) await(kind rpc.CriuReqType, h hooks) (*rpc.CriuResp, error) {
	var failed error
	for {
		m, err := w.receive()
		if err != nil {
			return nil, errors.Join(failed, err)
		}
		if m.GetType() != rpc.CriuReqType_NOTIFY {
			if m.GetType() != kind || !m.GetSuccess() {
				return m, errors.Join(failed, answerError(m))
			}
			return m, failed
		}
		if hook := h[m.GetNotify().GetScript()]; hook != nil && failed == nil {
			failed = hook()
		}
		err = w.send(&rpc.CriuReq{Type: rpc.CriuReqType_NOTIFY.Enum(), NotifySuccess: proto.Bool(failed == nil)})
		if err != nil {
			return nil, errors.Join(failed, err)
		}
	}
}

// answerError turns an answer that is no success into an error.
func answerError(m *rpc.CriuResp) error {
	if reason := logReason(m.GetCrErrmsg()); reason != "" {
		return errors.New(reason)
	}
	if n := m.GetCrErrno(); n != 0 {
		return unix.Errno(n)
	}
	return errors.New("failed")
}

// close ends the worker, which has nothing to do any more, and waits for it.
func (w *worker) close() {
	_ = w.socket.Close()
	if w.ended != nil {
		<-w.ended
	}
}
