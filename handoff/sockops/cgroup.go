// SPDX-License-Identifier: Apache-2.0

package sockops

import (
	"path"
	"strings"
)

// cgroupMount finds where cgroup v2 is mounted in the text of /proc/self/mountinfo, and which of its directories is there.
func cgroupMount(mountinfo string) (mount, root string, ok bool) {
	for line := range strings.Lines(mountinfo) {
		// 35 24 0:30 ROOT MOUNT options [optional...] - cgroup2 source options (proc_pid_mountinfo(5))
		before, after, found := strings.Cut(line, " - ")
		fields := strings.Fields(before)
		if found && strings.HasPrefix(after, "cgroup2 ") && len(fields) >= 6 {
			return unescape(fields[4]), unescape(fields[3]), true
		}
	}
	return "", "", false
}

// unescape undoes the octal escapes of mountinfo.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// cgroupOwn finds the process's cgroup in the text of /proc/self/cgroup.
func cgroupOwn(cgroup string) (string, bool) {
	for line := range strings.Lines(cgroup) {
		if p, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::"); ok && strings.HasPrefix(p, "/") {
			return p, true
		}
	}
	return "", false
}

// cgroupPath joins the two. A process outside of what is mounted (in a container, "/../x") gets the mount itself.
func cgroupPath(mountinfo, cgroup string) (string, bool) {
	mount, root, ok := cgroupMount(mountinfo)
	if !ok {
		return "", false
	}
	own, ok := cgroupOwn(cgroup)
	if !ok || strings.Contains(own, "/..") {
		return mount, true
	}
	if root != "/" {
		below, inside := strings.CutPrefix(own, root)
		if !inside || below != "" && below[0] != '/' {
			return mount, true
		}
		own = below
	}
	return path.Join(mount, own), true
}
