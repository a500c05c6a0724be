// SPDX-License-Identifier: Apache-2.0

package criu

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
)

// children returns the processes that a process has started, and that have not ended.
func children(pid int) ([]int, error) {
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return nil, noProcess(pid, err)
	}
	var list []int
	for _, t := range tasks {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/children", pid, t.Name()))
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				continue // the thread has ended
			}
			return nil, noProcess(pid, err)
		}
		for _, f := range strings.Fields(string(b)) {
			if child, err := strconv.Atoi(f); err == nil {
				list = append(list, child)
			}
		}
	}
	return list, nil
}

// Tree returns a process and all that descend from it, parents first.
func Tree(root int) ([]int, error) {
	tree := []int{root}
	for i := 0; i < len(tree); i++ {
		more, err := children(tree[i])
		if err != nil {
			if i > 0 && errors.Is(err, ErrNoProcess) {
				continue // it has just ended
			}
			return nil, err
		}
		tree = append(tree, more...)
	}
	return tree, nil
}

// findInside returns the process below root that has the number inside in its own PID namespace.
func findInside(root, inside int) (int, error) {
	tree, err := Tree(root)
	if err != nil {
		return 0, err
	}
	for _, pid := range tree[1:] {
		s, err := readStatus(pid)
		if err == nil && s.inside() == inside {
			return pid, nil
		}
	}
	return 0, fmt.Errorf("%w: %d, which CRIU says it has restored", ErrNoProcess, inside)
}

func noProcess(pid int, err error) error {
	if errors.Is(err, fs.ErrNotExist) || strings.Contains(err.Error(), "no such process") {
		return fmt.Errorf("%w: %d", ErrNoProcess, pid)
	}
	return fmt.Errorf("process %d: %w", pid, err)
}

// readStatus reads what the kernel says of a process.
func readStatus(pid int) (status, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return status{}, noProcess(pid, err)
	}
	return parseStatus(string(b))
}
