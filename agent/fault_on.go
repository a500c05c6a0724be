// SPDX-License-Identifier: Apache-2.0

//go:build faults

package agent

import (
	"errors"
	"os"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/handoff/wire"
)

// This file injects faults into a real agent, for the laboratory's tests. The file that $REHOME_FAULT names says which one, once:
//
//	stop HOST ROLE STEP      the agent stops itself (SIGSTOP) before a step; who wants it to go on sends SIGCONT
//	frame HOST KIND lost     the frame is not sent
//	frame HOST KIND doubled  it is sent twice
//	frame HOST KIND 1s       it is sent that much later
//
// Whoever carries the fault out removes the file.

// reach stops the agent if that is the fault that is wanted. role is source, target or entry; step is a migration.Verb, at an entry a wire.Kind.
func (e *engine) reach(role, step string) {
	if !e.wanted("stop", role+" "+step) {
		return
	}
	// To this thread: it goes no further, whatever the others do until they stop, too.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	_ = unix.Tgkill(os.Getpid(), unix.Gettid(), unix.SIGSTOP)
}

// disturb does with a frame what is wanted; false means that it is to be sent as usual.
func (e *engine) disturb(k wire.Kind, send func()) bool {
	switch name := k.String(); {
	case e.wanted("frame", name+" lost"):
	case e.wanted("frame", name+" doubled"):
		send()
		send()
	default:
		f := fault()
		if len(f) != 4 || f[0] != "frame" || f[2] != name {
			return false
		}
		late, err := time.ParseDuration(f[3])
		if err != nil || !e.wanted("frame", name+" "+f[3]) {
			return false
		}
		time.AfterFunc(late, func() { e.post(func(*engine) { send() }) })
	}
	return true
}

// wanted reports whether this is the fault, and takes it.
func (e *engine) wanted(what, rest string) bool {
	if strings.Join(fault(), " ") != what+" "+e.cfg.Host+" "+rest {
		return false
	}
	err := os.Remove(os.Getenv("REHOME_FAULT"))
	return err == nil || errors.Is(err, os.ErrNotExist)
}

func fault() []string {
	b, err := os.ReadFile(os.Getenv("REHOME_FAULT"))
	if err != nil {
		return nil
	}
	return strings.Fields(string(b))
}
