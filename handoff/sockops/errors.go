// SPDX-License-Identifier: Apache-2.0

package sockops

import "errors"

// What callers can tell apart with errors.Is. All of them mean: go on without seeding.
var (
	ErrPermission  = errors.New("not permitted: needs CAP_NET_ADMIN and CAP_BPF")
	ErrUnsupported = errors.New("not supported by this kernel: needs CONFIG_CGROUP_BPF")
	ErrNoCgroup    = errors.New("no cgroup v2: mount one (mount -t cgroup2 none DIR) or give its path")
)
