// SPDX-License-Identifier: Apache-2.0

// Package health asks backends whether they serve: active checks, as operators know them from other load balancers. What the backends
// say of themselves is package availability's; a backend should be given sessions when both find it well.
//
//	prober, err := health.NewProber(health.ProbeConfig{Kind: health.HTTP, Path: "/healthz"})
//	checker, err := health.NewChecker(health.CheckerConfig{Check: health.CheckConfig{Rise: 2, Fall: 3}, Changed: …})
//	checker.SetTargets([]health.Target{{Name: "web/b1", Address: vip, Dial: path.To(b1), Prober: prober}})
//	err = checker.Run(ctx)
//
// # Parts
//
//	check.go      counts failures and successes, and says when to probe next: pure
//	probe.go      one probe of each kind: tcp, http, tls, udp, script
//	checker.go    runs probes, and feeds the counts
//	path_linux.go the way to one backend for a packet to the virtual address
//
// # Through the VIP's path
//
// A backend holds the virtual address (VIP) and may serve nothing else, so a probe must be addressed to the VIP and still reach one
// backend. On the dispatcher's host that cannot be done as it stands: the VIP is the host's own, so packets to it do not leave, and
// answers from it are dropped as martians. A Path is a network namespace that does not have the VIP, on the same Ethernet
// through a macvlan interface with an address of its own, with one routing table for each backend: whatever the destination, the next hop is
// that backend. A probe's socket chooses the table by its mark. So the probe takes the client's way from the last hop on: the
// frame has the backend's MAC address and the VIP, the server answers from the VIP, and the answer comes back directly. The kernel
// finds the MAC address by ARP, as ever.
//
// Without a Path, probes go to whatever address a target names, in the caller's own namespace.
package health
