// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"golang.org/x/sys/unix"
)

// Finding is what Probe found about one thing the gate needs.
type Finding struct {
	Name     string // such as "capability CAP_BPF"
	OK       bool
	Required bool   // the gate does not open without it
	Detail   string // what is missing and what to do; empty when OK
}

// Probe looks at what the machine offers, without changing it and without opening a gate.
func Probe() []Finding {
	findings := []Finding{
		found("kernel has BPF syscall programs", features.HaveProgramType(ebpf.Syscall), true, "needs Linux 5.17 with CONFIG_BPF_SYSCALL"),
		found("kernel has BPF traffic control programs", features.HaveProgramType(ebpf.SchedCLS), true, "needs CONFIG_NET_CLS_ACT"),
		found("kernel has bpf_loop", features.HaveProgramHelper(ebpf.SchedCLS, asm.FnLoop), true, "needs Linux 5.17"),
		found("kernel has the coarse clock for BPF", features.HaveProgramHelper(ebpf.SchedCLS, asm.FnKtimeGetCoarseNs), true, "needs Linux 5.11"),
		found("kernel has tcx", atLeast(6, 6), false, "below Linux 6.6 the gate uses clsact filters, which outlive a killed process; a program in front can shadow them"),
		found("/dev/net/tun can be opened", openTUN(), true, "needs CONFIG_TUN; in a container, pass the device in"),
		found("BPF filesystem at /sys/fs/bpf", isBPFFS("/sys/fs/bpf"), false, "needed to pin there, which is the agent's default: mount -t bpf bpf /sys/fs/bpf"),
	}
	for _, c := range []struct {
		name string
		bit  int
	}{{"CAP_NET_ADMIN", unix.CAP_NET_ADMIN}, {"CAP_BPF", unix.CAP_BPF}, {"CAP_PERFMON", unix.CAP_PERFMON}} {
		findings = append(findings, found("capability "+c.name, haveCapability(c.bit), true,
			"run as root, or give the service the capability (systemd: AmbientCapabilities="+c.name+")"))
	}
	return findings
}

func found(name string, err error, required bool, advice string) Finding {
	f := Finding{Name: name, OK: err == nil, Required: required}
	switch {
	case errors.Is(err, os.ErrPermission) && !strings.HasPrefix(name, "capability"):
		f.Detail = fmt.Sprintf("%v: cannot tell: run as root", err)
	case err != nil:
		f.Detail = fmt.Sprintf("%v: %s", err, advice)
	}
	return f
}

func atLeast(major, minor int) error {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return err
	}
	release := unix.ByteSliceToString(u.Release[:])
	var have [2]int
	if _, err := fmt.Sscanf(release, "%d.%d", &have[0], &have[1]); err != nil {
		return fmt.Errorf("kernel release %q: %w", release, err)
	}
	if have[0] < major || have[0] == major && have[1] < minor {
		return fmt.Errorf("kernel is %s", release)
	}
	return nil
}

func openTUN() error {
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return f.Close()
}

func isBPFFS(path string) error {
	var s unix.Statfs_t
	if err := unix.Statfs(path, &s); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if s.Type != unix.BPF_FS_MAGIC {
		return fmt.Errorf("%s is no BPF filesystem", path)
	}
	return nil
}

// haveCapability looks at the effective set. CAP_SYS_ADMIN stands in for CAP_BPF and CAP_PERFMON.
func haveCapability(bit int) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return err
	}
	has := func(bit int) bool { return data[bit/32].Effective&(1<<(bit%32)) != 0 }
	if has(bit) || bit != unix.CAP_NET_ADMIN && has(unix.CAP_SYS_ADMIN) {
		return nil
	}
	return errors.New("missing")
}
