// SPDX-License-Identifier: Apache-2.0

package sockops

import "errors"

// What callers can tell apart with errors.Is. All of them mean: go on without.
var (
	ErrPermission  = errors.New("not permitted: needs CAP_NET_ADMIN, CAP_BPF and CAP_PERFMON")
	ErrUnsupported = errors.New("not supported by this kernel: needs CONFIG_CGROUP_BPF, and CONFIG_DEBUG_INFO_BTF to see connections end")
	ErrNoCgroup    = errors.New("no cgroup v2: mount one (mount -t cgroup2 none DIR) or give its path")
)
