// SPDX-License-Identifier: Apache-2.0

package criu

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"

	"github.com/checkpoint-restore/go-criu/v7/rpc"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

const (
	// workBytes is the room for what CRIU writes besides memory: sockets' queues, files without a name, its log.
	workBytes = 1 << 30
	// ghostBytes is the largest open file without a name that travels in the image, in bytes.
	ghostBytes = 256 << 20
	// logLevel is CRIU's "info".
	logLevel = 2
)

// DumpConfig says what to dump. Path, PID and the functions are needed.
type DumpConfig struct {
	// Path is the program, as Find returned it.
	Path string
	// PID is the first process of the tree, as this process sees it.
	PID int
	// Processes is how many the tree has.
	Processes int
	// Inside is the same, as the process sees itself: another number in a PID namespace of its own.
	Inside int
	// ShellJob is set when the tree's session is led by a process outside of it.
	ShellJob bool
	// Lazy leaves out the memory that can follow the restored tree. Until Stopped returns it can be read with Pages.
	Lazy bool
	// Ahead is what was sent ahead of the dump; may be nil.
	Ahead *Ahead
	// Tracked is what was sent ahead where the kernel tracks changes; may be nil. Its Sink was this one.
	Tracked *Tracked
	// BeforeFreeze is called when CRIU is about to stop the tree; the tree still runs. An error ends the dump.
	BeforeFreeze func() error
	// Sink takes the image while it is made, piece by piece, from several goroutines. It may block, and must not keep Data.
	Sink func(Piece) error
	// Stopped is called when the whole image has been taken; the tree is stopped, and its sockets are silent. When it returns nil the tree is
	// killed without a word to its peers, else it goes on as if nothing had happened.
	Stopped func(Manifest) error
}

// Dump stops a tree of processes and writes its image. It returns nil when the tree is gone; after any error the tree goes on.
// A dump cannot be interrupted; it ends early when Sink or a hook returns an error.
func Dump(c DumpConfig) (err error) {
	dir, err := c.directory()
	if err != nil {
		return &OpError{Op: "dump", Err: err}
	}
	defer dir.Close() //nolint:errcheck // nothing in it is needed
	taken, err := newCapture(dir, "", c.Processes, c.Ahead, c.Sink)
	if err != nil {
		return &OpError{Op: "dump", Err: err}
	}
	w, err := c.start(dir, taken.writers)
	taken.closeWriters()
	if err != nil {
		taken.close()
		return &OpError{Op: "dump", Err: err}
	}
	req := c.request(rpc.CriuReqType_DUMP)
	if c.Tracked != nil && c.Tracked.rounds > 0 {
		req.Opts.TrackMem, req.Opts.ParentImg = proto.Bool(true), proto.String("../"+strconv.Itoa(c.Tracked.rounds))
	}
	_, err = w.call(req, hooks{
		"pre-dump": c.BeforeFreeze,
		"post-dump": func() error {
			m, err := taken.finish()
			if err != nil {
				return err
			}
			if c.Tracked != nil {
				m.add(c.Tracked.manifest)
			}
			return c.Stopped(m)
		},
	})
	w.close()
	taken.close()
	if err != nil {
		return &OpError{Op: "dump", Reason: logOf(dir), Err: errors.Join(taken.failure(), err)}
	}
	return nil
}

// directory makes CRIU's image directory, in memory.
func (c DumpConfig) directory() (*os.File, error) {
	if c.Tracked != nil {
		return c.Tracked.open(finalDir)
	}
	return newMemory(workBytes)
}

// start starts CRIU where it sees the tree as the tree sees itself.
func (c DumpConfig) start(dir *os.File, pipes []*os.File) (*worker, error) {
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close() //nolint:errcheck // it is CRIU's
	cmd := exec.Command(c.Path)
	cmd.ExtraFiles = append([]*os.File{theirs, dir}, pipes...)
	if c.Lazy {
		// When Stopped has returned a CRIU would serve the memory itself, at a port. It gets a connection that is at its end instead.
		over, err := endedSocket()
		if err != nil {
			return nil, errors.Join(err, ours.Close())
		}
		defer over.Close() //nolint:errcheck // it is CRIU's
		cmd.Args = append(cmd.Args, "--ps-socket", fmt.Sprint(firstPipeFD+len(pipes)))
		cmd.ExtraFiles = append(cmd.ExtraFiles, over)
	}
	cmd.Args = append(cmd.Args, "swrk", fmt.Sprint(socketFD))
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	if err := startBeside(c.PID, cmd); err != nil {
		_ = ours.Close()
		return nil, explain(c.Path, err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait() // the answer says whether it went well
	}()
	return &worker{socket: ours, ended: ended}, nil
}

func (c DumpConfig) request(kind rpc.CriuReqType) *rpc.CriuReq {
	pid := c.Inside
	if pid == 0 {
		pid = c.PID
	}
	o := options()
	o.Pid = proto.Int32(int32(pid))
	o.ShellJob = proto.Bool(c.ShellJob)
	o.LazyPages = proto.Bool(c.Lazy)
	return &rpc.CriuReq{Type: kind.Enum(), Opts: o}
}

// options are those that a dump and its restore have in common. Locking the network is left to packet gates: CRIU's own lock drops
// packets, and loses to connections that are just being set up.
func options() *rpc.CriuOpts {
	return &rpc.CriuOpts{
		ImagesDirFd:       proto.Int32(-1),
		ImagesDir:         proto.String(fmt.Sprintf("/proc/self/fd/%d", imageFD)),
		LogLevel:          proto.Int32(logLevel),
		LogFile:           proto.String(logFile),
		NotifyScripts:     proto.Bool(true),
		TcpEstablished:    proto.Bool(true),
		NetworkLock:       rpc.CriuNetworkLockMethod_SKIP.Enum(),
		ManageCgroups:     proto.Bool(true),
		ManageCgroupsMode: rpc.CriuCgMode_IGNORE.Enum(),
		FileLocks:         proto.Bool(true),
		ExtUnixSk:         proto.Bool(true),
		LinkRemap:         proto.Bool(true),
		GhostLimit:        proto.Uint32(ghostBytes),
	}
}
