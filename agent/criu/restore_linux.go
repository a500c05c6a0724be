// SPDX-License-Identifier: Apache-2.0

package criu

import (
	"cmp"
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
	// Fetch, if it is set, asks for memory that a lazy dump has left out. It is called from one goroutine, which it may block; the answers are to
	// be given to Give, in the order of the requests. After an error the tree is ended.
	Fetch func(Fetch) error
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
	// fetcher is nil unless memory follows; failed is why it does not any more.
	fetcher *fetcher
	failed  error

	mu   sync.Mutex
	kept bool
	over bool
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
	var lazy *fetcher
	if c.Fetch != nil {
		if lazy, err = newFetcher(store); err != nil {
			return nil, errors.Join(err, ours.Close(), life.Close())
		}
		cmd.Args = append(cmd.Args, lazyArgument)
		cmd.ExtraFiles = append(cmd.ExtraFiles, lazy.theirs...)
	}
	if err := startApart(cmd); err != nil {
		if lazy != nil {
			lazy.close()
		}
		return nil, errors.Join(fmt.Errorf("start the first process: %w", err), ours.Close(), life.Close())
	}
	h := &Chamber{config: c, store: store, worker: &worker{socket: ours}, cmd: cmd, life: life, ended: make(chan struct{}), fetcher: lazy}
	if lazy != nil {
		lazy.started()
		go func() { h.fail(lazy.serve(c.Fetch)) }()
	}
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
	o.ShellJob, o.LazyPages = proto.Bool(h.config.ShellJob), proto.Bool(h.fetcher != nil)
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
// number of the tree's first process on this host, if the tree runs; after any error nothing is left of it. It has not run unless the error is ErrMayHaveRun.
func (h *Chamber) Restore(restored func(pid int) error, resumed func()) (int, error) {
	pid, loose := 0, false
	answered, released := make(chan struct{}), make(chan error, 1)
	go func() {
		var err error
		if h.fetcher != nil {
			err = h.fetcher.release(h.store, answered)
		}
		if err == nil {
			err = h.store.release(answered)
		}
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
			if err = restored(pid); err != nil || h.fetcher != nil {
				return err
			}
			return h.keep()
		},
		"pre-resume": func() error {
			h.mu.Lock()
			loose = !h.over
			h.mu.Unlock()
			if !loose {
				<-h.ended // CRIU would let go of it whatever is answered
			}
			return nil
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
		h.mu.Lock()
		err = errors.Join(h.failed, err)
		h.mu.Unlock()
		if loose {
			err = errors.Join(ErrMayHaveRun, err)
		}
		err = &OpError{Op: "restore", Reason: logOf(h.store.dir), Err: err}
		return 0, errors.Join(err, h.end())
	}
	if h.fetcher != nil {
		return pid, nil
	}
	return pid, h.Close()
}

// Give gives the tree memory that it has asked for. It is for one goroutine at a time.
func (h *Chamber) Give(m Memory) error {
	if h.fetcher == nil {
		return errNotLazy
	}
	err := h.fetcher.give(m)
	if err != nil {
		h.fail(err)
	}
	return err
}

// Wait waits until all memory of a tree has come that Restore has let run. Before that the tree lives as long as this process does. After an error
// it is gone; its peers got a RST.
func (h *Chamber) Wait() error {
	err := h.fetcher.wait()
	if err == nil {
		err = h.keep()
	}
	if err == nil {
		return h.Close()
	}
	reason := readLog(h.store.dir, lazyLog)
	h.mu.Lock()
	err = cmp.Or(h.failed, err)
	h.mu.Unlock()
	return &OpError{Op: "lazy-pages", Reason: reason, Err: errors.Join(ErrMemory, err, h.end())}
}

// fail ends a tree whose memory cannot be had, with a RST for its peers. It must not run any more: what it misses would be zeros to it.
func (h *Chamber) fail(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.kept || h.over || err == nil {
		return
	}
	h.failed, h.over = err, true
	if pid, err := findInside(h.cmd.Process.Pid, h.config.Root); err == nil {
		resetConnections(pid)
	}
	_ = h.cmd.Process.Kill()
}

// Fail ends a tree whose memory has not all come, because it cannot.
func (h *Chamber) Fail(err error) { h.fail(err) }

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
	h.over = true
	defer func() {
		if h.fetcher != nil {
			h.fetcher.close() // not before the tree has ended
		}
	}()
	_ = h.worker.socket.Close()
	_ = h.life.Close()
	if h.kept {
		return nil
	}
	return kill(h.cmd, h.ended)
}
