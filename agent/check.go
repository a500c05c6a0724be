// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/tcprepair"
)

// Finding is one thing that Check has looked at.
type Finding struct {
	// What was looked at, such as "kernel" or "CAP_BPF".
	What string `json:"what"`
	// OK is true when nothing is missing. Optional things can be done without.
	OK       bool `json:"ok"`
	Optional bool `json:"optional,omitempty"`
	// Detail says what was found, Advice what to do if it is not OK.
	Detail string `json:"detail"`
	Advice string `json:"advice,omitempty"`
}

type kernelNeed struct {
	major, minor int
	optional     bool
	advice       string
}

// kernelNeeds returns the oldest kernels: with everything that is needed, and with what is worth having.
func kernelNeeds() []kernelNeed {
	return []kernelNeed{
		{5, 15, false, "use Linux 5.15 or newer: the gate needs BPF syscall programs"},
		{6, 6, true, "Linux 6.6 has tcx; below it the gate uses clsact"},
	}
}

// Check looks at the machine, and at what the configuration expects of it; cfg may be nil. It changes nothing.
func Check(cfg *Config) []Finding {
	var found []Finding
	found = append(found, checkKernel()...)
	found = append(found, checkCapabilities()...)
	found = append(found, checkRepair(), checkPath("BTF", "/sys/kernel/btf/vmlinux", true, "a kernel with CONFIG_DEBUG_INFO_BTF=y loads every program"),
		checkPath("tap devices", "/dev/net/tun", false, "load the module tun"), checkLoopback())
	if cfg == nil {
		return found
	}
	return append(found, checkConfig(cfg)...)
}

func checkKernel() []Finding {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return []Finding{{What: "kernel", Detail: err.Error()}}
	}
	release := unix.ByteSliceToString(u.Release[:])
	major, minor := parseRelease(release)
	needs := kernelNeeds()
	found := make([]Finding, 0, len(needs))
	for _, need := range needs {
		ok := major > need.major || major == need.major && minor >= need.minor
		f := Finding{What: fmt.Sprintf("kernel %d.%d", need.major, need.minor), OK: ok, Optional: need.optional, Detail: "Linux " + release}
		if !ok {
			f.Advice = need.advice
		}
		found = append(found, f)
	}
	return found
}

func parseRelease(s string) (major, minor int) {
	parts := strings.FieldsFunc(s, func(r rune) bool { return r < '0' || r > '9' })
	if len(parts) < 2 {
		return 0, 0
	}
	major, _ = strconv.Atoi(parts[0])
	minor, _ = strconv.Atoi(parts[1])
	return major, minor
}

func checkCapabilities() []Finding {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	err := unix.Capget(&header, &data[0])
	var found []Finding
	for _, c := range []struct {
		name, why string
		bit       uint
	}{
		{"CAP_NET_ADMIN", "freezing sockets and attaching the gate", unix.CAP_NET_ADMIN},
		{"CAP_NET_RAW", "restoring half-closed connections", unix.CAP_NET_RAW},
		{"CAP_BPF", "loading the gate", unix.CAP_BPF},
		{"CAP_PERFMON", "loading the gate", unix.CAP_PERFMON},
	} {
		f := Finding{What: c.name, Detail: c.why}
		switch {
		case err != nil:
			f.Detail = err.Error()
		case data[c.bit/32].Effective&(1<<(c.bit%32)) != 0:
			f.OK = true
		default:
			f.Advice = "run as root, or give the agent this capability (AmbientCapabilities= in its unit)"
		}
		found = append(found, f)
	}
	return found
}

// checkRepair freezes a connection of its own, on loopback.
func checkRepair() Finding {
	f := Finding{What: "TCP_REPAIR", Detail: "a connection on loopback was frozen and resumed"}
	if err := tryRepair(); err != nil {
		f.Detail = err.Error()
		f.Advice = "the kernel needs CONFIG_CHECKPOINT_RESTORE=y, the process CAP_NET_ADMIN"
		return f
	}
	f.OK = true
	return f
}

func tryRepair() (err error) {
	ln, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return err
	}
	defer ln.Close() //nolint:errcheck // nothing was written
	d := net.Dialer{}
	d.SetMultipathTCP(false)
	client, err := d.Dial("tcp4", ln.Addr().String())
	if err != nil {
		return err
	}
	defer client.Close() //nolint:errcheck // nothing was written
	tcp, ok := client.(*net.TCPConn)
	if !ok {
		return fmt.Errorf("%T is no TCP connection", client)
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return err
	}
	cerr := raw.Control(func(fd uintptr) {
		if err = tcprepair.Freeze(int(fd)); err == nil {
			err = tcprepair.Resume(int(fd))
		}
	})
	return errors.Join(err, cerr)
}

func checkPath(what, path string, optional bool, advice string) Finding {
	f := Finding{What: what, Optional: optional, Detail: path}
	if _, err := os.Stat(path); err != nil {
		f.Detail, f.Advice = err.Error(), advice
		return f
	}
	f.OK = true
	return f
}

func checkLoopback() Finding {
	f := Finding{What: "loopback", Detail: "lo is up"}
	lo, err := net.InterfaceByName("lo")
	switch {
	case err != nil:
		f.Detail = err.Error()
	case lo.Flags&net.FlagUp == 0:
		f.Detail, f.Advice = "lo is down", "ip link set lo up: half-closed connections are restored by way of it"
	default:
		f.OK = true
	}
	return f
}

// checkConfig looks at what the configuration expects of this host.
func checkConfig(cfg *Config) []Finding {
	found := []Finding{checkPin(cfg.pinPath())}
	for _, name := range cfg.Interfaces {
		f := Finding{What: "interface " + name, Detail: "up"}
		link, err := net.InterfaceByName(name)
		switch {
		case err != nil:
			f.Detail, f.Advice = err.Error(), "correct interfaces in the configuration"
		case link.Flags&net.FlagUp == 0:
			f.Detail, f.Advice = "down", "ip link set "+name+" up"
		default:
			f.OK = true
		}
		found = append(found, f)
	}
	for _, p := range cfg.Peers {
		f := Finding{What: "peer " + p.Name, OK: true, Detail: p.Address}
		if hop, err := findNextHop(p); err != nil {
			f.OK, f.Detail, f.Advice = false, err.Error(), "the peer must be a neighbour on the same Ethernet; start it, or give its mac"
		} else {
			f.Detail += " at " + hop.dst.String()
		}
		found = append(found, f)
	}
	return append(found, checkServices(cfg)...)
}

func checkPin(path string) Finding {
	if path == "" {
		return Finding{
			What: "gate.pin", Optional: true, Detail: "nothing is pinned",
			Advice: "leave gate.pin out: without it the flow table and the holds go with the agent",
		}
	}
	f := Finding{What: "gate.pin", Detail: path}
	dir := path
	for {
		if _, err := os.Stat(dir); err == nil || dir == "/" || dir == "." {
			break
		}
		dir = filepath.Dir(dir)
	}
	var st unix.Statfs_t
	switch err := unix.Statfs(dir, &st); {
	case err != nil:
		f.Detail = err.Error()
	case st.Type != unix.BPF_FS_MAGIC:
		f.Detail = dir + " is on no BPF file system"
		f.Advice = "mount -t bpf bpf /sys/fs/bpf"
	default:
		f.OK = true
	}
	return f
}

// checkServices looks for the services' addresses on this host, and for answering ARP where it should not.
func checkServices(cfg *Config) []Finding {
	var found []Finding
	for _, s := range cfg.Services {
		if s.Entry != cfg.Host && !slices.Contains(s.Servers, cfg.Host) {
			continue
		}
		for _, a := range s.Addresses {
			f := Finding{What: fmt.Sprintf("address %v of %s", a.Addr(), s.Name), Detail: "on this host"}
			on, err := interfaceOf(a.Addr().AsSlice())
			switch {
			case err != nil:
				f.Detail = err.Error()
				f.Advice = fmt.Sprintf("ip addr add %v/%d dev lo", a.Addr(), a.Addr().BitLen())
			case s.Entry == cfg.Host && on == "lo" && a.Addr().Is4() && sysctl("net/ipv4/conf/all/arp_ignore") != "0":
				f.Detail, f.Advice = "on lo, and arp_ignore keeps it from being answered for", "put it on the interface that faces the clients"
			case s.Entry != cfg.Host && a.Addr().Is4() && sysctl("net/ipv4/conf/all/arp_ignore") == "0":
				f.Detail = "this host answers ARP for it, as the entry does"
				f.Advice = "sysctl -w net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2, and the address on lo"
			default:
				f.OK, f.Detail = true, "on "+on
			}
			found = append(found, f)
		}
	}
	return found
}

func interfaceOf(ip net.IP) (string, error) {
	links, err := net.Interfaces()
	if err != nil {
		return "", err
	}
	for _, l := range links {
		addrs, err := l.Addrs()
		if err != nil {
			return "", err
		}
		for _, a := range addrs {
			if n, ok := a.(*net.IPNet); ok && n.IP.Equal(ip) {
				return l.Name, nil
			}
		}
	}
	return "", errors.New("not on this host")
}

func sysctl(key string) string {
	raw, err := os.ReadFile("/proc/sys/" + key)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(raw))
}
