// SPDX-License-Identifier: Apache-2.0

package criu

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"sync"

	"github.com/checkpoint-restore/go-criu/v7/rpc"
	"google.golang.org/protobuf/proto"
)

// RestoreConfig says how to restore a tree. Path is needed.
type RestoreConfig struct {
	// Path is the program, as Find returned it.
	Path string
	// Init starts the first process of the tree's PID namespace: a program and arguments that lead to Init. This program with
	// InitCommand when empty.
	Init []string
	// Root is the number of the tree's first process, as it sees itself.
	Root int
	// IDs are the numbers of the tree's processes, threads, groups and sessions, as they see them: nothing else of the namespace gets one.
	IDs []int
	// ShellJob is that of the dump.
	ShellJob bool
}

// Chamber is where a tree is restored: PID and mount namespaces of its own, in the network namespace of the caller, with a CRIU that
// waits. It is made before it is needed, because that takes time. The number of a process is free in there, whatever runs on the host.
type Chamber struct {
	config RestoreConfig
	store  *Store
	worker *worker
	cmd    *exec.Cmd
	life   *os.File // the end of it that says keep
	ended  chan struct{}

	mu   sync.Mutex
	kept bool
}

// NewChamber starts one for the image in the store. Close ends it, unless it has been kept.
func NewChamber(c RestoreConfig, store *Store) (_ *Chamber, err error) {
	defer func() {
		if err != nil {
			err = &OpError{Op: "restore", Err: err}
		}
	}()
	if len(c.Init) == 0 {
		c.Init = []string{"/proc/self/exe", InitCommand}
	}
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close() //nolint:errcheck // it is CRIU's
	theirLife, life, err := os.Pipe()
	if err != nil {
		_ = ours.Close()
		return nil, fmt.Errorf("pipe: %w", err)
	}
	defer theirLife.Close() //nolint:errcheck // it is Init's
	cmd := exec.Command(c.Init[0], append(slices.Clone(c.Init[1:]), c.Path, fmt.Sprint(freeID(c.IDs)))...)
	cmd.ExtraFiles = []*os.File{theirs, store.dir, theirLife}
	if err := startApart(cmd); err != nil {
		return nil, errors.Join(fmt.Errorf("start the first process: %w", err), ours.Close(), life.Close())
	}
	h := &Chamber{config: c, store: store, worker: &worker{socket: ours}, cmd: cmd, life: life, ended: make(chan struct{})}
	go func() {
		defer close(h.ended)
		_ = cmd.Wait()
	}()
	if err := h.begin(); err != nil {
		return nil, errors.Join(err, h.Close())
	}
	return h, nil
}

// begin asks CRIU to restore. It looks at the kernel first, which takes time, and then waits for the image's first file, which is a pipe.
func (h *Chamber) begin() error {
	o := options()
	o.ShellJob = proto.Bool(h.config.ShellJob)
	return h.worker.send(&rpc.CriuReq{Type: rpc.CriuReqType_RESTORE.Enum(), Opts: o})
}

// idRoom is how many processes CRIU and its helpers may start beside a tree.
const idRoom = 64

// freeID returns a number with idRoom numbers behind it that the tree does not use, for the namespace's own processes. PIDs below
// 300 are given once only.
func freeID(used []int) int {
	const first = 300
	free := first
	for _, id := range slices.Sorted(slices.Values(used)) {
		if id >= free+idRoom {
			break
		}
		free = max(free, id+1)
	}
	return free
}

// Restore makes the tree of the image in the store. restored is called when everything is there and stands still, and its sockets are
// still silent: when it returns nil the tree runs, else it is gone. resumed, which may be nil, is called when it runs. Restore returns nil, and the
// number of the tree's first process on this host, if the tree runs; after any error nothing is left of it.
func (h *Chamber) Restore(restored func(pid int) error, resumed func()) (int, error) {
	pid := 0
	answered, released := make(chan struct{}), make(chan error, 1)
	go func() {
		err := h.store.release(answered)
		if err != nil {
			_ = h.cmd.Process.Kill() // CRIU would wait for ever
		}
		released <- err
	}()
	_, err := h.worker.await(rpc.CriuReqType_RESTORE, hooks{
		"post-restore": func() (err error) {
			if pid, err = findInside(h.cmd.Process.Pid, h.config.Root); err != nil {
				return err
			}
			if err = restored(pid); err != nil {
				return err
			}
			return h.keep()
		},
		"post-resume": func() error {
			if resumed != nil {
				resumed()
			}
			return nil
		},
	})
	close(answered)
	if failed := <-released; failed != nil && !errors.Is(failed, ErrGone) {
		err = errors.Join(failed, err)
	}
	if err != nil {
		err = &OpError{Op: "restore", Reason: logOf(h.store.dir), Err: err}
		return 0, errors.Join(err, h.end())
	}
	return pid, h.Close()
}

// end ends the namespace whatever has been restored in it.
func (h *Chamber) end() error {
	h.mu.Lock()
	h.kept = false
	h.mu.Unlock()
	return h.Close()
}

// keep lets the tree outlive this process.
func (h *Chamber) keep() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, err := h.life.Write([]byte{keep}); err != nil {
		return fmt.Errorf("%w: the first process of the namespace ended", ErrGone)
	}
	h.kept = true
	return nil
}

// Close ends the chamber with all that is in it, unless the tree has been restored.
func (h *Chamber) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	_ = h.worker.socket.Close()
	_ = h.life.Close()
	if h.kept {
		return nil
	}
	return kill(h.cmd, h.ended)
}
