// SPDX-License-Identifier: Apache-2.0

package reqsk

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/features"
	"golang.org/x/sys/unix"
)

// Finding is what Probe found about one thing that injecting needs.
type Finding struct {
	Name     string // such as "capability CAP_BPF"
	OK       bool
	Required bool   // Open fails without it
	Detail   string // what is missing and what to do; empty when OK
}

// Probe looks at what the machine, and the calling thread's network namespace, offer, without changing anything.
func Probe() []Finding {
	findings := []Finding{
		found("kernel describes its types (BTF)", exists("/sys/kernel/btf/vmlinux"), true, "needs CONFIG_DEBUG_INFO_BTF"),
		found("kernel makes connections for BPF (bpf_sk_assign_tcp_reqsk)", haveKfunc(), true,
			"needs Linux 6.9; on this host deliver through the linked API or descriptor passing"),
		found("kernel has BPF traffic control programs", features.HaveProgramType(ebpf.SchedCLS), true, "needs CONFIG_NET_XGRESS"),
		found("kernel has BPF tracepoints", features.HaveProgramType(ebpf.Tracing), false,
			"needs CONFIG_BPF_EVENTS; without it Inject sometimes cannot tell what became of a connection that a server ended at once (ErrUncertain)"),
		found("/dev/net/tun can be opened", openTUN(), true, "needs CONFIG_TUN; in a container, pass the device in"),
		found("net.ipv4.tcp_syncookies is on", syncookies(), true, "sysctl -w net.ipv4.tcp_syncookies=1"),
		found("net.ipv4.conf.all.rp_filter is not strict", looseReversePath(), true, "sysctl -w net.ipv4.conf.all.rp_filter=0"),
	}
	for _, key := range []string{"tcp_window_scaling", "tcp_sack", "tcp_timestamps"} {
		findings = append(findings, found("net.ipv4."+key+" is on", switchedOn("/proc/sys/net/ipv4/"+key), false,
			"connections that have negotiated it cannot be injected: sysctl -w net.ipv4."+key+"=1"))
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

func exists(path string) error {
	_, err := os.Stat(path)
	return err
}

func openTUN() error {
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return f.Close()
}

func looseReversePath() error {
	f, err := os.Open(reversePathPath)
	if err != nil {
		return err
	}
	return errors.Join(reversePath(f), f.Close())
}

func switchedOn(path string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if strings.TrimSpace(string(b)) == "0" {
		return errors.New("it is 0")
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
