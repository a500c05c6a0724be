// SPDX-License-Identifier: Apache-2.0

package criu

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"github.com/checkpoint-restore/go-criu/v7/rpc"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// Tracked is memory that pre-dumps of a running tree have sent ahead, where the kernel tracks changes (soft-dirty): the final dump sends only
// pages that have changed since. Each round is an image of its own, which the next one refers to. At the source only its page tables are kept.
type Tracked struct {
	dir      *os.File
	rounds   int
	manifest Manifest
}

// parentFile is a file of the image that is not CRIU's: it says how many rounds precede it.
const parentFile = "parent.img"

// finalDir is where the final dump's files are at the source, beside the rounds'.
const finalDir = "final"

// Track sends a running tree's memory ahead, in rounds; room is what the target has for pages that come twice. It returns an error when
// no round succeeded, which is no reason not to move the tree; a later round that fails ends the rounds.
func Track(c DumpConfig, room uint64) (_ *Tracked, err error) {
	dir, err := newMemory(workBytes)
	if err != nil {
		return nil, &OpError{Op: "pre-dump", Err: err}
	}
	t := &Tracked{dir: dir}
	plan := rounds{room: room}
	for plan.another() {
		sent := t.manifest.Bytes
		if err = t.round(c); err != nil {
			break
		}
		plan.add(t.manifest.Bytes - sent)
	}
	if t.rounds == 0 {
		// What has come of it is part of the image, and of no use.
		return t, &OpError{Op: "pre-dump", Err: err}
	}
	return t, t.tell(c.Sink)
}

// round makes one pre-dump. The tree goes on while its memory is read.
func (t *Tracked) round(c DumpConfig) (err error) {
	name := strconv.Itoa(t.rounds + 1)
	dir, err := t.open(name)
	if err != nil {
		return err
	}
	defer dir.Close() //nolint:errcheck // it is in memory
	taken, err := newCapture(dir, name+"/", c.Processes, nil, c.Sink)
	if err != nil {
		return err
	}
	w, err := c.start(dir, taken.writers)
	taken.closeWriters()
	if err != nil {
		taken.close()
		return err
	}
	o := c.request(rpc.CriuReqType_SINGLE_PRE_DUMP)
	o.Opts.TrackMem = proto.Bool(true)
	if t.rounds > 0 {
		o.Opts.ParentImg = proto.String("../" + strconv.Itoa(t.rounds))
	}
	_, err = w.call(o, nil)
	w.close()
	m, ferr := taken.finish()
	t.manifest.add(m)
	if err != nil || ferr != nil {
		return fmt.Errorf("%w: %s", errors.Join(err, ferr), logOf(dir))
	}
	// The next round opens these, and reads nothing of them.
	for file := range taken.readers {
		if err := emptyFile(dir, file); err != nil {
			return err
		}
	}
	t.rounds++
	return nil
}

// emptyFile puts an empty file in the place of another.
func emptyFile(dir *os.File, name string) error {
	if err := unix.Unlinkat(int(dir.Fd()), name, 0); err != nil {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("make %s: %w", name, err)
	}
	return unix.Close(fd)
}

// open makes the directory of a round.
func (t *Tracked) open(name string) (*os.File, error) { return makeDir(t.dir, name) }

// makeDir makes a directory in one that is open.
func makeDir(in *os.File, name string) (*os.File, error) {
	if err := unix.Mkdirat(int(in.Fd()), name, 0o700); err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, fmt.Errorf("mkdir %s: %w", name, err)
	}
	fd, err := unix.Openat(int(in.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// tell sends how many rounds there were.
func (t *Tracked) tell(sink func(Piece) error) error {
	b, sum := []byte(strconv.Itoa(t.rounds)), newFileDigest()
	sum.add(b)
	if err := errors.Join(sink(Piece{File: parentFile, Data: b}), sink(Piece{File: parentFile})); err != nil {
		return &OpError{Op: "pre-dump", Err: err}
	}
	t.manifest.end(parentFile, sum)
	return nil
}

// Rounds returns how many rounds have been made, and Bytes how much they have sent.
func (t *Tracked) Rounds() int { return t.rounds }

// Bytes is explained at Rounds.
func (t *Tracked) Bytes() uint64 { return t.manifest.Bytes }

// Close frees what was kept for the final dump.
func (t *Tracked) Close() error { return t.dir.Close() }
