// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/handoff/neighbour"
	"github.com/rehome-net/rehome/handoff/peer"
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

// learnTime is how long Check waits for a host to answer, at layer 2 or at its port.
const learnTime = time.Second

// Check looks at what a gateway needs of this machine, and at what a validated configuration expects of it. It leaves nothing changed.
func Check(cfg *Config) []Finding {
	var found []Finding
	for _, f := range gate.Probe() {
		switch {
		case strings.Contains(f.Name, "BPF filesystem"), strings.Contains(f.Name, "bpf_loop"):
			continue // nothing is pinned, and there is no loop
		case strings.Contains(f.Name, "tcx"):
			f.Required = true
			if !f.OK {
				f.Detail = "the gateway needs Linux 6.6"
			}
		}
		found = append(found, Finding{What: f.Name, OK: f.OK, Optional: !f.Required, Advice: f.Detail})
	}
	for _, name := range cfg.Interfaces {
		found = append(found, checkInterface(name), checkFilter(name))
	}
	found = append(found, checkForwarding(cfg)...)
	found = append(found, checkTLS(cfg), checkDispatcher(cfg))
	for _, h := range cfg.Servers {
		found = append(found, checkServer(h))
	}
	return found
}

func checkInterface(name string) Finding {
	f := Finding{What: "interface " + name}
	l, err := net.InterfaceByName(name)
	switch {
	case err != nil:
		f.Detail, f.Advice = err.Error(), "interfaces: name the one towards the servers, as `ip link` shows it"
	case len(l.HardwareAddr) != 6:
		f.Detail, f.Advice = "it has no Ethernet header", "watch the Ethernet interface under it"
	case l.Flags&net.FlagUp == 0:
		f.Detail, f.Advice = "it is down", "ip link set "+name+" up"
	default:
		f.OK, f.Detail = true, l.HardwareAddr.String()
	}
	return f
}

// checkFilter looks at reverse path filtering: the servers' packets come from the virtual address.
func checkFilter(name string) Finding {
	f := Finding{What: "reverse path filter of " + name, OK: true, Optional: true, Detail: "not strict"}
	if max(sysctl("net/ipv4/conf/all/rp_filter"), sysctl("net/ipv4/conf/"+name+"/rp_filter")) == 1 {
		f.OK, f.Detail = false, "strict"
		f.Advice = "replies are dropped unless this host's route to the virtual addresses leads through " + name + ": sysctl -w net.ipv4.conf." + name + ".rp_filter=2"
	}
	return f
}

// checkForwarding looks at whether this host is a router, in the families of the services.
func checkForwarding(cfg *Config) []Finding {
	keys := map[bool]string{}
	for _, s := range cfg.Services {
		for _, a := range s.Addresses {
			keys[a.Addr().Is6()] = "net/ipv4/ip_forward"
			if a.Addr().Is6() {
				keys[true] = "net/ipv6/conf/all/forwarding"
			}
		}
	}
	var found []Finding
	for _, six := range []bool{false, true} {
		key, ok := keys[six]
		if !ok {
			continue
		}
		f := Finding{What: "sysctl " + strings.ReplaceAll(key, "/", "."), OK: sysctl(key) == 1}
		if !f.OK {
			f.Advice = "the servers' default gateway forwards: set it to 1"
		}
		found = append(found, f)
	}
	return found
}

// sysctl returns a number below /proc/sys, -1 when there is none. The machine's own namespace is meant.
func sysctl(key string) int {
	text, err := os.ReadFile("/proc/sys/" + key)
	if err != nil {
		return -1
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return -1
	}
	return n
}

func checkTLS(cfg *Config) Finding {
	f := Finding{What: "tls", Detail: "plaintext", OK: true}
	if cfg.Plaintext {
		return f
	}
	identity, err := peer.LoadIdentity(cfg.TLS)
	if err != nil {
		return Finding{What: f.What, Detail: err.Error(), Advice: "tls: name the files of this host's certificate and key, and of the authority"}
	}
	cert := identity.Certificate()
	f.Detail = "certificate until " + cert.NotAfter.Format(time.DateOnly)
	if err := cert.VerifyHostname(cfg.Host); err != nil {
		return Finding{What: f.What, Detail: err.Error(), Advice: "the certificate must have " + cfg.Host + " as a DNS name"}
	}
	if time.Now().After(cert.NotAfter) {
		f.OK, f.Advice = false, "it is over: issue another"
	}
	return f
}

// checkDispatcher looks whether somebody listens there. Who it is shows when the gateway runs.
func checkDispatcher(cfg *Config) Finding {
	f := Finding{What: "dispatcher " + cfg.Dispatcher.Name, Detail: cfg.Dispatcher.Address, Optional: true}
	conn, err := net.DialTimeout("tcp", cfg.Dispatcher.Address, learnTime)
	if err != nil {
		f.Detail, f.Advice = err.Error(), "until it is there, replies are late by hold; look at its listen, and at firewalls"
		return f
	}
	_ = conn.Close()
	f.OK = true
	return f
}

func checkServer(h HostConfig) Finding {
	f := Finding{What: "server " + h.Name, Detail: h.MAC, OK: h.MAC != "", Optional: true}
	if f.OK {
		return f
	}
	addr, err := netip.ParseAddr(h.Address)
	if err != nil {
		return Finding{What: f.What, Detail: err.Error()}
	}
	for deadline := time.Now().Add(learnTime); ; time.Sleep(20 * time.Millisecond) {
		mac, err := neighbour.Find(neighbour.Host{Name: h.Name, Addr: addr})
		if err == nil {
			f.OK, f.Detail = true, mac.String()
			return f
		}
		if time.Now().After(deadline) {
			f.Detail = err.Error()
			f.Advice = fmt.Sprintf("until it is known, nothing of %s is read and strangers are not refused; give its mac if it never answers", h.Name)
			return f
		}
	}
}
