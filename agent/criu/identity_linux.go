// SPDX-License-Identifier: Apache-2.0

package criu

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Identity tells a process from a later one with the same number.
type Identity struct {
	PID int
	// Started is when it did, in the kernel's clock ticks since the boot.
	Started uint64
}

// Identify returns the processes of a tree, parents first; none if it has ended.
func Identify(root int) []Identity {
	tree, err := Tree(root)
	if err != nil {
		return nil
	}
	var list []Identity
	for _, pid := range tree {
		if started, err := startTime(pid); err == nil {
			list = append(list, Identity{PID: pid, Started: started})
		}
	}
	return list
}

// Kill ends the process; ESRCH when there is none, or another one.
func (i Identity) Kill() error {
	// What the descriptor stands for stays the same process between the look and the signal.
	fd, err := unix.PidfdOpen(i.PID, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd) //nolint:errcheck // nothing was written
	if started, err := startTime(i.PID); err != nil || started != i.Started {
		return unix.ESRCH
	}
	return unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
}

// startTime reads field 22 of /proc/PID/stat (proc_pid_stat(5)).
func startTime(pid int) (uint64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, noProcess(pid, err)
	}
	// The name, field 2, is in parentheses and may have any in it.
	_, rest, ok := cutLast(string(b), ") ")
	fields := strings.Fields(rest)
	const field = 22 - 3
	if !ok || len(fields) <= field {
		return 0, fmt.Errorf("%w: stat of %d", errStatus, pid)
	}
	return strconv.ParseUint(fields[field], 10, 64)
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}
