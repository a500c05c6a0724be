// SPDX-License-Identifier: Apache-2.0

package sockops

import (
	"strings"
	"testing"
)

const (
	hybrid = `24 1 0:22 / /proc rw - proc proc rw
30 25 0:26 / /sys/fs/cgroup rw,nosuid - tmpfs tmpfs rw,mode=755
31 30 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu
40 30 0:36 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw
`
	unified   = "29 23 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
	container = "29 23 0:26 /pod/one /sys/fs/cgroup ro - cgroup2 cgroup rw\n"
	spaced    = `29 23 0:26 / /mnt/my\040groups rw - cgroup2 none rw` + "\n"
)

func TestCgroupPath(t *testing.T) {
	for _, c := range []struct {
		name, mountinfo, cgroup, want string
	}{
		{"hybrid, root", hybrid, "9:name=systemd:/\n0::/\n", "/sys/fs/cgroup/unified"},
		{"unified, service", unified, "0::/system.slice/rehome.service\n", "/sys/fs/cgroup/system.slice/rehome.service"},
		{"container", container, "0::/pod/one/app\n", "/sys/fs/cgroup/app"},
		{"container, its root", container, "0::/pod/one\n", "/sys/fs/cgroup"},
		{"container, a sibling's name", container, "0::/pod/one2\n", "/sys/fs/cgroup"},
		{"outside", unified, "0::/../other\n", "/sys/fs/cgroup"},
		{"v1 only in cgroup", unified, "4:memory:/x\n", "/sys/fs/cgroup"},
		{"space", spaced, "0::/a b\n", "/mnt/my groups/a b"},
		{"none", "24 1 0:22 / /proc rw - proc proc rw\n", "0::/\n", ""},
		{"cut", "29 23 - cgroup2", "0::/\n", ""},
	} {
		got, ok := cgroupPath(c.mountinfo, c.cgroup)
		if got != c.want || ok != (c.want != "") {
			t.Errorf("%s: %q, %v; want %q", c.name, got, ok, c.want)
		}
	}
}

func FuzzCgroupPath(f *testing.F) {
	f.Add(hybrid, "0::/\n")
	f.Add(container, "0::/pod/one/app\n")
	f.Fuzz(func(t *testing.T, mountinfo, cgroup string) {
		mount, _, mounted := cgroupMount(mountinfo)
		p, ok := cgroupPath(mountinfo, cgroup)
		if ok != mounted {
			t.Fatalf("%q, %v", p, ok)
		}
		if strings.HasPrefix(mount, "/") && !strings.Contains(mount, "/.") && !strings.Contains(mount, "//") &&
			!strings.HasPrefix(p, strings.TrimSuffix(mount, "/")) {
			t.Fatalf("%q is not below %q", p, mount)
		}
	})
}
