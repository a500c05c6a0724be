// SPDX-License-Identifier: Apache-2.0

// Package shortcut finds out whether what a tcx program sends out of an interface may go on at the other end of its veth pair at once.
//
// A container's interface is one end of a veth pair; the other end, usually a port of a bridge, is in the host's namespace. bpf_redirect
// queues a frame for the other end, where another pass of the softirq takes it up. bpf_redirect_peer (Linux 5.10) makes the frame the other
// end's within the same pass: one of the two passages through the pair that a host in the middle of a path costs is saved.
//
//	err := shortcut.Examine(netlink, ifindex)            // may it be used at all?
//	peers, err := shortcut.Neighbours(netlink, ifindex)  // who could say that frames arrive?
//	err = shortcut.Prove(netlink, ifindex, peers)        // do they?
//
// # What a frame passes by
//
// On the near side: queueing disciplines, tc and tcx programs at the way out, packet captures of what is sent, and the interface's counters of
// what was sent. Examine refuses an interface that has a discipline or a program of others there. On the far side: a native XDP program,
// which cannot be seen from here, as nothing of the other namespace can. tcx and tc programs, generic XDP, netfilter's ingress hook, captures
// and counters at the far end do see the frame. Whoever keeps a policy in native XDP at the far end must switch the shortcut off.
//
// # What it needs
//
// Linux 6.6 (tcx), CAP_NET_ADMIN, CAP_BPF, CAP_NET_RAW and /dev/net/tun for the question, and CAP_SYS_ADMIN where programs stand at the way
// out, as the gate's does: without it the kernel does not tell what they are, and they count as those of others.
//
// # What the kernel drops in silence
//
// A frame for a pair whose other end is down, or in the namespace of the first. Both can come about at any time, so Examine is to be
// repeated: its caller sets the interval for which such frames are lost that bpf_redirect would have delivered (an other end that is down
// takes none either way).
package shortcut
