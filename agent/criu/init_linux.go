// SPDX-License-Identifier: Apache-2.0

package criu

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// InitCommand is the first argument that makes a program of rehome's the first process of a restored tree's PID namespace: it calls
// Init with what follows, and exits with what it returns.
const InitCommand = "process-init"

// keep is what is written to the descriptor lifeFD when a restored tree is to live on without its agent.
const keep = 'k'

// lazyArgument is the third argument of an Init that also starts the CRIU which fetches memory.
const lazyArgument = "lazy"

// fetched is written to the descriptor fetchedFD when that CRIU has done its work.
const fetched = 'f'

// Init is the first process of the PID namespace that a tree is restored in. Its arguments are the path of CRIU and the number that
// the namespace's own processes are counted from, which none of the tree's has. It starts CRIU, collects the dead, and
// ends when the tree has. Until it is told to keep the tree, it ends, and all with it, when its agent does. It returns an exit code.
func Init(args []string) int {
	if err := runInit(args); err != nil {
		fmt.Fprintln(os.Stderr, "rehome:", err)
		return 1
	}
	return 0
}

func runInit(args []string) error {
	lazy := len(args) == 3 && args[2] == lazyArgument
	if len(args) != 2 && !lazy || os.Getpid() != 1 {
		return errors.New("this is started by the agent for a process that it restores")
	}
	// What the host mounts later is to be seen here, but not the other way round.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	if err := os.WriteFile("/proc/sys/kernel/ns_last_pid", []byte(args[1]), 0); err != nil {
		return fmt.Errorf("choose numbers for processes: %w", err)
	}
	unix.CloseOnExec(lifeFD)
	image, fetcher := os.NewFile(imageFD, "image"), 0
	if lazy {
		var err error
		if fetcher, err = startFetcher(args[0], image); err != nil {
			return err
		}
	}
	if err := startWorker(args[0], image); err != nil {
		return err
	}
	go awaitKeep()
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		if err == nil && pid == fetcher {
			if err := fetcherEnded(status); err != nil {
				return err
			}
		}
		if !errors.Is(err, unix.ECHILD) {
			continue
		}
		// What is left is no child: a CRIU that has just moved the tree away, and must be able to say so.
		if alone() {
			return nil
		}
		time.Sleep(leavePause)
	}
}

// leavePause is how often the first process looks whether it is the last one.
const leavePause = 20 * time.Millisecond

// alone reports whether nothing else runs in this PID namespace.
func alone() bool {
	list, err := os.ReadDir("/proc")
	if err != nil {
		return true
	}
	return !slices.ContainsFunc(list, func(e os.DirEntry) bool {
		pid, err := strconv.Atoi(e.Name())
		return err == nil && pid != 1
	})
}

// startWorker starts CRIU with the descriptors that the agent has passed.
func startWorker(path string, image *os.File) error {
	files := []*os.File{os.Stdin, os.Stdout, os.Stderr, os.NewFile(socketFD, "socket"), image}
	p, err := os.StartProcess(path, []string{path, "swrk", strconv.Itoa(socketFD)}, &os.ProcAttr{
		Files: files, Env: os.Environ(), Sys: &unix.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return explain(path, err)
	}
	_ = p.Release() // the loop below collects it
	for _, f := range files[socketFD:] {
		_ = f.Close() // or CRIU would not see the agent's death, and the image would live on
	}
	return nil
}

// startFetcher starts the CRIU that fetches memory.
func startFetcher(path string, image *os.File) (int, error) {
	for fd := lazyDirFD; fd <= fetchedFD; fd++ {
		unix.CloseOnExec(fd)
	}
	cmd := fetcherCommand(path, image)
	if err := cmd.Start(); err != nil {
		return 0, explain(path, err)
	}
	// fetchAgentFD stays open: CRIU, and with it what the tree misses, is not to end with the agent before the tree does.
	for _, f := range cmd.ExtraFiles {
		if f != image {
			_ = f.Close()
		}
	}
	return cmd.Process.Pid, nil
}

// fetcherEnded says that all memory is there, or ends everything: for what the tree misses, the kernel would give it zeros.
func fetcherEnded(status unix.WaitStatus) error {
	if !status.Exited() || status.ExitStatus() != 0 {
		_ = unix.Kill(-1, unix.SIGKILL)
		return fmt.Errorf("criu lazy-pages: exit status %d", status.ExitStatus())
	}
	done := os.NewFile(fetchedFD, "fetched")
	_, err := done.Write([]byte{fetched})
	return errors.Join(err, done.Close(), unix.Close(fetchAgentFD))
}

// awaitKeep ends the namespace when the agent dies before it has said to keep it.
func awaitKeep() {
	b := make([]byte, 1)
	n, _ := os.NewFile(lifeFD, "life").Read(b)
	if n != 1 || b[0] != keep {
		_ = unix.Kill(-1, unix.SIGKILL) // all at once
		os.Exit(1)
	}
}
