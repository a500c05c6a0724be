// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/agent/criu"
	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/handoff/gate/nft"
	"github.com/rehome-net/rehome/handoff/neighbour"
	"github.com/rehome-net/rehome/handoff/peer"
	"github.com/rehome-net/rehome/handoff/reqsk"
	"github.com/rehome-net/rehome/handoff/sockops"
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

// Check looks at the machine, and at what the configuration expects of it; cfg may be nil. It leaves nothing changed.
func Check(cfg *Config) []Finding {
	found := []Finding{checkKernel()}
	found = append(found, checkGate(cfg)...)
	found = append(found, checkRepair(), checkRaw(), checkSeeding(), checkEnds(), checkLoopback(), checkCRIU(cfg))
	found = append(found, checkUnmodified(cfg, reqsk.Probe())...)
	if cfg == nil {
		return found
	}
	return append(found, checkConfig(cfg)...)
}

// checkGate looks at both ways to hold and forward packets. What is missing for the one that is not chosen is no fault.
func checkGate(cfg *Config) []Finding {
	var found []Finding
	chosen := cfg != nil && cfg.Gate.Mode == GateNFT
	byBPF, byNFT := gate.Probe(), nft.Probe()
	for _, f := range byBPF {
		found = append(found, Finding{What: f.Name, OK: f.OK, Optional: !f.Required || chosen, Advice: f.Detail})
	}
	return append(found,
		Finding{What: byNFT.Name, OK: byNFT.OK, Optional: !chosen, Advice: byNFT.Detail},
		Finding{What: "packet gate", OK: true, Optional: true, Detail: gate.Ways(byBPF, byNFT)},
	)
}

// The oldest kernel that has what the gate needs (bpf_loop), and the oldest with tcx.
const (
	kernelNeeded      = "5.17"
	kernelRecommended = "6.6"
)

func checkKernel() Finding {
	f := Finding{What: "kernel", OK: true, Detail: "unknown"}
	var u unix.Utsname
	if err := unix.Uname(&u); err == nil {
		f.Detail = "Linux " + unix.ByteSliceToString(u.Release[:])
	}
	f.Detail += fmt.Sprintf(" (%s is needed, %s recommended; what it can do is looked at below)", kernelNeeded, kernelRecommended)
	return f
}

// checkRaw looks for what restoring a half-closed connection needs.
func checkRaw() Finding {
	f := Finding{What: "capability CAP_NET_RAW", Detail: "for half-closed connections"}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		f.Detail, f.Advice = err.Error(), "run as root, or give the agent CAP_NET_RAW (AmbientCapabilities= in its unit)"
		return f
	}
	f.OK = true
	_ = unix.Close(fd)
	return f
}

// checkSeeding attaches the program that seeds congestion windows, and takes it away again.
func checkSeeding() Finding {
	f := Finding{What: "congestion window can be seeded", Optional: true}
	s, err := sockops.Open("")
	if err == nil {
		err = s.Close()
	}
	if err != nil {
		f.Detail, f.Advice = err.Error(), "moved connections start slowly without it"
		return f
	}
	f.OK = true
	return f
}

// checkEnds attaches the program that sees connections end, and takes it away again.
func checkEnds() Finding {
	f := Finding{What: "connections can be seen to end", Optional: true}
	w, err := sockops.Watch(sockops.WatchConfig{})
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		f.Detail, f.Advice = err.Error(), "an entry forgets flows when they have been idle for gate.idle_timeout without it; with gate.mode: nft they are looked for instead"
		return f
	}
	f.OK = true
	return f
}

// checkUnmodified says what unmodified servers need to get connections from a dispatcher. An agent whose servers are linked, or take
// descriptors, can do without.
func checkUnmodified(cfg *Config, probed []reqsk.Finding) []Finding {
	const what = "unmodified servers: "
	if cfg != nil && cfg.Gate.Mode == GateNFT {
		return []Finding{{What: what + "BPF", Optional: true, Detail: needsBPF}}
	}
	found := make([]Finding, 0, len(probed))
	for _, f := range probed {
		found = append(found, Finding{What: what + f.Name, OK: f.OK, Optional: true, Advice: f.Detail})
	}
	return found
}

// checkCRIU looks for what moves whole processes. It can be done without where no service is a process.
func checkCRIU(cfg *Config) Finding {
	f := Finding{What: "CRIU", Optional: true}
	path := os.Getenv(criuEnvironment)
	if cfg != nil {
		path = cfg.Process.CRIU
		f.Optional = !slices.ContainsFunc(cfg.Services, func(s ServiceConfig) bool { return s.Process })
	}
	found, version, err := criu.Find(path)
	if err != nil {
		f.Detail, f.Advice = err.Error(), "install criu "+criu.Needed().String()+" or newer: whole processes cannot be moved without it"
		return f
	}
	f.OK, f.Detail = true, fmt.Sprintf("%v at %s, for whole processes", version, found)
	if can, err := criu.Probe(found); err == nil {
		f.Detail += fmt.Sprintf(" (the kernel tracks changes of memory: %s; memory can follow a process here: %s)",
			yesNo(can.DirtyTracking), yesNo(can.LazyPages))
	}
	return f
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no, and it is not needed"
}

// checkRepair freezes and reads a connection of its own, on loopback.
func checkRepair() Finding {
	f := Finding{What: "TCP_REPAIR", Detail: "a connection on loopback was frozen, read and resumed"}
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
		if err = tcprepair.Freeze(int(fd)); err != nil {
			return
		}
		_, err = tcprepair.Take(int(fd), tcprepair.Limits{})
		err = errors.Join(err, tcprepair.Resume(int(fd)))
	})
	return errors.Join(err, cerr)
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
	found := []Finding{checkTLS(cfg)}
	if cfg.Gate.Mode != GateNFT {
		found = append(found, checkPin(cfg.pinPath()))
	}
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
		if mac, err := neighbour.Find(p.Host()); err != nil {
			f.OK, f.Detail, f.Advice = false, err.Error(), "the peer must be a neighbour on the same Ethernet; start it, or give its mac"
		} else {
			f.Detail += " at " + mac.String()
		}
		found = append(found, f)
	}
	return append(append(found, checkServices(cfg)...), checkReport(cfg)...)
}

// checkTLS reads the files that prove who this host is.
func checkTLS(cfg *Config) Finding {
	f := Finding{What: "tls", Detail: cfg.TLS.Certificate}
	if cfg.Plaintext || cfg.TLS == (peer.Files{}) {
		f.OK, f.Optional, f.Detail = true, true, "off: for a laboratory, or a host without peers"
		return f
	}
	id, err := peer.LoadIdentity(cfg.TLS)
	if err != nil {
		f.Detail, f.Advice = err.Error(), "correct the paths under tls"
		return f
	}
	leaf := id.Certificate()
	switch err := leaf.VerifyHostname(cfg.Host); {
	case err != nil:
		f.Detail, f.Advice = err.Error(), fmt.Sprintf("the certificate needs the DNS name %q, which is this host's", cfg.Host)
	case time.Now().After(leaf.NotAfter):
		f.Detail, f.Advice = fmt.Sprintf("the certificate ended on %v", leaf.NotAfter), "renew it"
	default:
		f.OK, f.Detail = true, fmt.Sprintf("%s, until %s", cfg.TLS.Certificate, leaf.NotAfter.Format(time.DateOnly))
	}
	return f
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
			case s.Entry != cfg.Host && a.Addr().Is4() && (sysctl("net/ipv4/conf/all/arp_ignore") == "0" || sysctl("net/ipv4/conf/all/arp_announce") != "2"):
				f.Detail = fmt.Sprintf("this host answers ARP for it, as the entry does (arp_ignore %s, arp_announce %s)",
					sysctl("net/ipv4/conf/all/arp_ignore"), sysctl("net/ipv4/conf/all/arp_announce"))
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
