// SPDX-License-Identifier: Apache-2.0

package criu

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"

	"golang.org/x/sys/unix"
)

// joined are the namespaces in which CRIU has to be to see a process as it sees itself.
func joined() []namespace {
	return []namespace{{"mnt", unix.CLONE_NEWNS}, {"pid", unix.CLONE_NEWPID}, {"net", unix.CLONE_NEWNET}}
}

type namespace struct {
	name string
	flag int
}

// sameNamespace reports whether a process has a namespace in common with the calling thread.
func sameNamespace(pid int, name string) (bool, error) {
	var ours, theirs unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/"+name, &ours); err != nil {
		return false, fmt.Errorf("namespace %s: %w", name, err)
	}
	if err := unix.Stat(fmt.Sprintf("/proc/%d/ns/%s", pid, name), &theirs); err != nil {
		return false, noProcess(pid, err)
	}
	return ours.Ino == theirs.Ino && ours.Dev == theirs.Dev, nil
}

// startBeside starts cmd in the mount, PID and network namespaces of a process.
func startBeside(pid int, cmd *exec.Cmd) error {
	apart := false
	for _, ns := range joined() {
		same, err := sameNamespace(pid, ns.name)
		if err != nil {
			return err
		}
		apart = apart || !same
	}
	if !apart {
		return cmd.Start()
	}
	started := make(chan error)
	go onThreadOfItsOwn(func() { started <- startInside(pid, cmd) })
	return <-started
}

// startInside starts cmd in the namespaces of a process, and leaves the thread there.
func startInside(pid int, cmd *exec.Cmd) error {
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	var files []*os.File
	defer func() {
		for _, f := range files {
			_ = f.Close()
		}
	}()
	// Behind the first setns /proc may be another.
	for _, ns := range joined() {
		f, err := os.Open(fmt.Sprintf("/proc/%d/ns/%s", pid, ns.name))
		if err != nil {
			return noProcess(pid, err)
		}
		files = append(files, f)
	}
	for i, ns := range joined() {
		if err := unix.Setns(int(files[i].Fd()), ns.flag); err != nil {
			return fmt.Errorf("join the %s namespace of process %d: %w", ns.name, pid, err)
		}
	}
	return cmd.Start()
}

// onThreadOfItsOwn runs f on a thread that ends with it. It is to be called in a goroutine of its own. The first thread does not end, and
// stands for the whole program in /proc: it is passed over.
func onThreadOfItsOwn(f func()) {
	runtime.LockOSThread()
	if unix.Gettid() != os.Getpid() {
		f()
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // another one, as the first is locked
		f()
	}()
	<-done
	runtime.UnlockOSThread()
}

// startApart starts the first process of namespaces of their own, for mounts and PIDs.
func startApart(cmd *exec.Cmd) error {
	cmd.SysProcAttr = &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID, Setsid: true}
	return cmd.Start()
}

// kill ends the first process of a PID namespace, and with it all others, and waits for it.
func kill(cmd *exec.Cmd, ended <-chan struct{}) error {
	err := cmd.Process.Kill()
	if errors.Is(err, os.ErrProcessDone) {
		err = nil
	}
	<-ended
	return err
}
