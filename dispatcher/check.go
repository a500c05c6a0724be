// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/dispatcher/forward"
	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/handoff/gate/nft"
	"github.com/rehome-net/rehome/handoff/neighbour"
	"github.com/rehome-net/rehome/handoff/peer"
	"github.com/rehome-net/rehome/tcprepair"
)

// Finding is one thing that Check has looked at.
type Finding struct {
	// What was looked at, such as "interface eth0".
	What string `json:"what"`
	// OK is true when nothing is missing. Optional things can be done without.
	OK       bool `json:"ok"`
	Optional bool `json:"optional,omitempty"`
	// Detail says what was found, Advice what to do if it is not OK.
	Detail string `json:"detail"`
	Advice string `json:"advice,omitempty"`
}

// learnTime is how long Check waits for peers to answer at layer 2.
const learnTime = time.Second

// Check looks at what a dispatcher needs of this machine, and at what a validated configuration expects of it. It leaves nothing
// changed. What the backends need, their own agents check.
func Check(cfg *Config) []Finding {
	found := checkPath(cfg)
	found = append(found, checkRepair(), checkTLS(cfg), checkControl(cfg))
	for _, name := range cfg.Interfaces {
		found = append(found, checkInterface(name))
	}
	found = append(found, checkAddresses(cfg)...)
	found = append(found, checkPeers(cfg.Peers)...)
	return append(found, checkShortcuts(cfg)...)
}

// checkPath looks at both ways to hold and forward packets. What is missing for the one that is not chosen is no fault. The gate can
// do without tcx, and so can nftables; the other forwarders cannot.
func checkPath(cfg *Config) []Finding {
	var found []Finding
	chosen := cfg.Forward.Mode == ForwardNFT
	byGate, byNFT := gate.Probe(), nft.Probe()
	byBPF := byGate
	if !chosen {
		byBPF = forward.Probe()
		for _, f := range byGate {
			if !slices.ContainsFunc(byBPF, func(of gate.Finding) bool { return of.Name == f.Name }) {
				byBPF = append(byBPF, f)
			}
		}
	}
	for _, f := range byBPF {
		found = append(found, Finding{What: f.Name, OK: f.OK, Optional: !f.Required || chosen, Advice: f.Detail})
	}
	found = append(found,
		Finding{What: byNFT.Name, OK: byNFT.OK, Optional: !chosen, Advice: byNFT.Detail},
		Finding{What: "packet path", OK: true, Optional: true, Detail: gate.Ways(byBPF, byNFT)},
	)
	if chosen {
		return found // the pin says no more than whether the table is kept
	}
	return append(found, checkPin(cfg.PinPath()))
}

// checkRepair accepts a connection on loopback as services do, and freezes it.
func checkRepair() Finding {
	f := Finding{What: "TCP_REPAIR", Detail: "an accepted connection was frozen and resumed"}
	if err := tryRepair(); err != nil {
		f.Detail = err.Error()
		f.Advice = "the kernel needs CONFIG_CHECKPOINT_RESTORE=y, the process CAP_NET_ADMIN; and lo must be up"
		return f
	}
	f.OK = true
	return f
}

func tryRepair() error {
	at := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 0)
	ln, err := listen(at, 0)
	if err != nil {
		return err
	}
	defer unix.Close(ln) //nolint:errcheck // nothing was written
	bound, err := unix.Getsockname(ln)
	if err != nil {
		return os.NewSyscallError("getsockname", err)
	}
	client, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(client) //nolint:errcheck // nothing was written
	if err := unix.Connect(client, bound); err != nil {
		return os.NewSyscallError("connect on loopback", err)
	}
	ready := []unix.PollFd{{Fd: int32(ln), Events: unix.POLLIN}}
	if _, err := unix.Poll(ready, int(time.Second/time.Millisecond)); err != nil {
		return os.NewSyscallError("poll", err)
	}
	fd, _, err := accept(ln, at)
	if err != nil {
		return os.NewSyscallError("accept", err)
	}
	defer unix.Close(fd) //nolint:errcheck // nothing was written
	if err := tcprepair.Freeze(fd); err != nil {
		return err
	}
	return tcprepair.Resume(fd)
}

func checkInterface(name string) Finding {
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
	return f
}

// checkPin looks for the BPF file system of a directory that need not exist yet.
func checkPin(path string) Finding {
	f := Finding{What: "pin", Detail: path}
	if path == "" {
		f.Optional, f.Detail = true, "nothing is pinned"
		f.Advice = "leave pin out: without it the connections that were handed off end with the dispatcher"
		return f
	}
	dir := path
	for dir != "/" {
		if _, err := os.Stat(dir); err == nil {
			break
		}
		dir = filepath.Dir(dir)
	}
	var st unix.Statfs_t
	switch err := unix.Statfs(dir, &st); {
	case err != nil:
		f.Detail, f.Advice = err.Error(), "correct pin in the configuration"
	case st.Type != unix.BPF_FS_MAGIC:
		f.Detail, f.Advice = dir+" is on no BPF file system", "mount -t bpf bpf /sys/fs/bpf, or correct pin"
	default:
		f.OK = true
	}
	return f
}

// checkTLS reads the files that prove who this host is.
func checkTLS(cfg *Config) Finding {
	f := Finding{What: "tls", Detail: cfg.TLS.Certificate}
	if cfg.TLS == (TLSConfig{}) {
		f.OK, f.Optional, f.Detail = true, true, "off: for a laboratory"
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

// checkControl looks whether the operators' socket can be made. A dispatcher that runs there already is no fault.
func checkControl(cfg *Config) Finding {
	f := Finding{What: "control", OK: true, Detail: cfg.Control}
	if !cfg.ControlIsPath() {
		return f
	}
	if conn, err := net.DialTimeout("unix", cfg.Control, time.Second); err == nil {
		_ = conn.Close()
		f.Detail += ": a dispatcher is running"
	} else if errors.Is(err, os.ErrPermission) {
		f.OK, f.Detail, f.Advice = false, err.Error(), "run as root, or correct control in the configuration"
	}
	return f
}

// checkAddresses looks for the services' addresses on this host's interfaces, where something must answer for them.
func checkAddresses(cfg *Config) []Finding {
	var found []Finding
	have, err := hostAddresses()
	if err != nil {
		return []Finding{{What: "addresses", Detail: err.Error(), Advice: "look at this host's interfaces: ip addr"}}
	}
	seen := map[netip.Addr]bool{}
	for _, s := range cfg.Services {
		for _, at := range s.Addresses {
			a := at.Addr()
			if seen[a] {
				continue
			}
			seen[a] = true
			f := Finding{What: fmt.Sprintf("address %v of %s", a, s.Name)}
			switch on, ok := have[a]; {
			case !ok && isLocal(a):
				f.OK, f.Optional, f.Detail = true, true, "on no interface, but its packets come to this host: routers must lead it here"
			case !ok:
				f.Detail = "not on this host"
				f.Advice = fmt.Sprintf("ip addr add %v/%d dev %s", a, a.BitLen(), strings.Join(cfg.Interfaces[:1], ""))
			case !slices.Contains(cfg.Interfaces, on):
				f.OK, f.Optional, f.Detail = true, true, "on "+on+", which is none of the interfaces: routers must lead it here"
			default:
				f.OK, f.Detail = true, "on "+on
			}
			found = append(found, f)
		}
	}
	return found
}

// isLocal reports whether this host takes packets to an address as its own, as a route of type local makes it do.
func isLocal(a netip.Addr) bool {
	routes, err := netlink.RouteGet(a.AsSlice())
	return err == nil && len(routes) > 0 && routes[0].Type == unix.RTN_LOCAL
}

// hostAddresses returns this host's addresses and the interfaces that have them.
func hostAddresses() (map[netip.Addr]string, error) {
	links, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	all := make(map[netip.Addr]string)
	for _, l := range links {
		addrs, err := l.Addrs()
		if err != nil {
			return nil, err
		}
		for _, a := range addrs {
			if n, ok := a.(*net.IPNet); ok {
				if ip, ok := netip.AddrFromSlice(n.IP); ok {
					all[ip.Unmap()] = l.Name
				}
			}
		}
	}
	return all, nil
}

// checkPeers looks for the backends at layer 2. To ask makes the kernel look for them, so they have a moment to answer.
func checkPeers(peers []PeerConfig) []Finding {
	found := make([]Finding, len(peers))
	for deadline := time.Now().Add(learnTime); ; time.Sleep(tickTime) {
		missing := 0
		for i, p := range peers {
			if !found[i].OK {
				found[i] = checkPeer(p)
			}
			if !found[i].OK {
				missing++
			}
		}
		if missing == 0 || time.Now().After(deadline) {
			return found
		}
	}
}

func checkPeer(p PeerConfig) Finding {
	f := Finding{What: "peer " + p.Name, Detail: p.Address}
	var mac net.HardwareAddr
	at, err := netip.ParseAddrPort(p.Address)
	if err == nil {
		mac, err = neighbour.Find(neighbour.Host{Name: p.Name, Addr: at.Addr(), MAC: p.MAC})
	}
	if err != nil {
		f.Detail, f.Advice = err.Error(), "the peer must be a neighbour on the same Ethernet; start it, or give its mac"
		return f
	}
	f.OK = true
	f.Detail += " at " + mac.String()
	return f
}
