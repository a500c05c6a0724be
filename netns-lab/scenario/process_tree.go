// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// processTree returns a process and everything that it, and what it started, has started.
func processTree(pid int) ([]int, error) {
	tree := []int{pid}
	for i := 0; i < len(tree); i++ {
		lists, err := filepath.Glob(filepath.Join("/proc", strconv.Itoa(tree[i]), "task/*/children"))
		if err != nil {
			return nil, err
		}
		if len(lists) == 0 {
			return nil, fmt.Errorf("process %d: %w", tree[i], os.ErrProcessDone)
		}
		for _, list := range lists {
			text, err := os.ReadFile(list)
			if err != nil {
				continue // a thread that has ended
			}
			for _, word := range strings.Fields(string(text)) {
				child, err := strconv.Atoi(word)
				if err != nil {
					return nil, fmt.Errorf("%s: %w", list, err)
				}
				tree = append(tree, child)
			}
		}
	}
	return tree, nil
}

// adoptOrphans makes this process the parent of those whose own has ended. Process 1 may take its time to wait for them, and until
// then their numbers are taken.
func adoptOrphans() error {
	return os.NewSyscallError("prctl", unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))
}

// awaitFree waits until the processes have ended and their numbers are free again. Those that are this process's own are waited for.
func awaitFree(ctx context.Context, pids []int) error {
	for _, pid := range pids {
		for !errors.Is(unix.Kill(pid, 0), unix.ESRCH) {
			_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil) // no child of ours: whoever started it waits
			select {
			case <-ctx.Done():
				return fmt.Errorf("process %d does not end: %w", pid, ctx.Err())
			case <-time.After(100 * time.Microsecond):
			}
		}
	}
	return nil
}
