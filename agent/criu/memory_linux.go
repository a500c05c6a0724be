// SPDX-License-Identifier: Apache-2.0

package criu

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// newMemory makes a directory in memory, on a file system of its own with room for limit bytes. It has no name: it goes when the
// last descriptor of it is closed, whoever dies.
func newMemory(limit int64) (_ *os.File, err error) {
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make a file system in memory: %w", err)
	}
	defer unix.Close(fs) //nolint:errcheck // nothing was written
	err = errors.Join(
		unix.FsconfigSetString(fs, "size", strconv.FormatInt(limit, 10)),
		unix.FsconfigSetString(fs, "mode", "0700"),
		unix.FsconfigCreate(fs),
	)
	if err != nil {
		return nil, fmt.Errorf("make a file system in memory: %w", err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return nil, fmt.Errorf("mount a file system in memory: %w", err)
	}
	return os.NewFile(uintptr(fd), "images"), nil
}
