// SPDX-License-Identifier: Apache-2.0

package netnslab

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// stopGrace is how long a process may take to end after SIGTERM.
const stopGrace = 2 * time.Second

// process names a process beyond the reuse of its number.
type process struct {
	PID int `json:"pid"`
	// Started is the start time in clock ticks since boot, field 22 of /proc/PID/stat.
	Started uint64 `json:"started"`
	Host    string `json:"host"`
	Command string `json:"command"`
}

// processOf reads the start time of a process that exists.
func processOf(pid int) (process, error) {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return process{}, fmt.Errorf("process %d: %w", pid, err)
	}
	// The second field is the name in parentheses, which may contain anything: count from the last one.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	const started = 22 - 3 // the first field here is the third
	if len(fields) <= started {
		return process{}, fmt.Errorf("process %d: stat has %d fields", pid, len(fields)+2)
	}
	ticks, err := strconv.ParseUint(fields[started], 10, 64)
	if err != nil {
		return process{}, fmt.Errorf("process %d: start time: %w", pid, err)
	}
	return process{PID: pid, Started: ticks}, nil
}

// residents returns the processes in a named network namespace, the youngest first, so that children come before their parents. This process, whose threads
// come and go there, is not among them.
func residents(namespace string) ([]process, error) {
	var stat unix.Stat_t
	err := unix.Stat(filepath.Join(namespaceDir, namespace), &stat)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("namespace %s: %w", namespace, err)
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var list []process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		link, err := os.Readlink(filepath.Join("/proc", e.Name(), "ns/net"))
		if err != nil || link != fmt.Sprintf("net:[%d]", stat.Ino) {
			continue // it is elsewhere, or has ended since
		}
		if p, err := processOf(pid); err == nil {
			p.Host, p.Command = namespace, "unknown"
			list = append(list, p)
		}
	}
	slices.SortFunc(list, func(a, b process) int { return cmp.Compare(b.Started, a.Started) })
	return list, nil
}

// stop ends the process, by force after stopGrace, and returns when it has ended. One that is gone, or another with its number, is left alone.
func (p process) stop() error {
	fd, err := unix.PidfdOpen(p.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("process %d: pidfd: %w", p.PID, err)
	}
	defer unix.Close(fd) //nolint:errcheck // nothing was written
	// With the pidfd in hand the number cannot be given away: compare now.
	if now, err := processOf(p.PID); err != nil || now.Started != p.Started {
		return nil
	}
	for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} {
		if err := unix.PidfdSendSignal(fd, sig, nil, 0); err != nil {
			if errors.Is(err, unix.ESRCH) {
				return nil
			}
			return fmt.Errorf("process %d: %v: %w", p.PID, sig, err)
		}
		if ended, err := awaitReadable(fd, stopGrace); ended || err != nil {
			return err
		}
	}
	return fmt.Errorf("process %d (%s in %s): still there %v after SIGKILL", p.PID, p.Command, p.Host, stopGrace)
}

// awaitReadable waits until fd can be read; a pidfd can once its process has ended, reaped or not.
func awaitReadable(fd int, limit time.Duration) (bool, error) {
	deadline := time.Now().Add(limit)
	for {
		left := max(time.Until(deadline), 0)
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(poll, int(left.Milliseconds())+1)
		if errors.Is(err, unix.EINTR) && left > 0 {
			continue
		}
		if err != nil {
			return false, os.NewSyscallError("poll", err)
		}
		return n > 0, nil
	}
}
