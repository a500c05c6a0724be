// SPDX-License-Identifier: Apache-2.0

package criu

import (
	"errors"
	"fmt"
	"strings"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// lockTable begins the names of the tables with which CRIU locks the network, when it is told to (criu/netfilter.c).
const lockTable = "CRIU-"

// RemoveLocks deletes the packet filters that a CRIU which locked the network by itself has left in the namespace of the calling thread: they
// swallow the packets of a connection that comes back. It returns how many there were. A kernel without nftables has none.
func RemoveLocks() (int, error) {
	c, err := nftables.New()
	if err != nil {
		return 0, fmt.Errorf("nftables: %w", err)
	}
	tables, err := c.ListTables()
	if err != nil {
		if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EINVAL) {
			return 0, nil
		}
		return 0, fmt.Errorf("list nftables: %w", err)
	}
	n := 0
	for _, t := range tables {
		if strings.HasPrefix(t.Name, lockTable) {
			c.DelTable(t)
			n++
		}
	}
	if n == 0 {
		return 0, nil
	}
	if err := c.Flush(); err != nil {
		return 0, fmt.Errorf("delete CRIU's nftables: %w", err)
	}
	return n, nil
}
