// SPDX-License-Identifier: Apache-2.0

// Package nft is a gate for kernels that refuse BPF: it holds the packets of single TCP connections for a while, and sends those of connections that
// live elsewhere on to their hosts at layer 2, with nftables' netdev family. Its methods are those of package gate, as far as it has them, and
// those of a dispatcher's forwarder.
//
// # The ruleset
//
//	table netdev rehome
//	  set fresh4, fresh6:   client . port . service . port    connections that have begun and are this host's
//	  map flows4, flows6:   the same key : goto node-<n>      connections that were handed over
//	  set seen4, seen6:     the same key, with a timeout      when packets of those were last seen
//	  map strays4, strays6: the same key : goto node-<n>      connections that have moved on from here, with a timeout
//	  set held4, held6:     the same key, with a timeout      what comes is dropped
//	  set kept4, kept6:     the same key, with a timeout      what comes stays at this host, whatever flows says
//	  set muted4, muted6:   the same key, with a timeout      what this host sends is dropped, but SYN-ACKs
//	  set names:            node                              which host that is, as a comment
//	  chain ingress-<interface>
//	    its key in @held: drop
//	    its key in @kept: accept                              (a)
//	    a SYN: update @fresh, accept                          (a; at a server: accept)
//	    its key in @fresh: accept                             (a)
//	    vmap @flows                                           (a)
//	    vmap @strays
//	  chain egress-<interface>
//	    its key in @muted: drop
//	  chain node-<n>
//	    update @seen                                          (a)
//	    ether daddr and saddr set, dup to the interface, drop
//
//	(a): at an entry, Config.Server is false
//
// Every method is one transaction of nftables, which takes effect as a whole: some tens of microseconds where a BPF map takes one. What is
// in the kernel outlives the process, and everything that must not outlive it for long has a timeout there.
//
// A SYN decides anew, as in package forward: a port that is used again must not follow an old connection. Commit takes the key out of
// fresh and puts it into flows; the epoch is in the element's comment, so that tables and epochs outlive the process.
//
// # Holding
//
// There is no queue. At a server, what comes for a held connection is dropped, and the client's kernel sends it again: after its
// retransmission timeout, 200 ms or more, or sooner by a tail loss probe. At an entry the connection's own frozen socket is the queue. It receives
// what comes, and its acknowledgements do not leave the host; what it has received since it was read goes to the next owner by Divert,
// and whatever is lost on the way, or comes in the moment of the switch, the client sends again, as nobody has acknowledged it.
//
//	Hold(both) ─► frozen, read ─► Grant ─► the server has it ─► Divert(what came since) ─► socket discarded ─► Settle
//
// With Grant the new owner is in the table, behind the hold: when the process dies then, the flow's packets go to the owner after the
// hold's deadline, and before that to nobody (this host is mute and answers no RST).
//
// # What it cannot do
//
// Choose servers (services are this host's, node 0), have new connections wait, UDP, announced flows, diversion, inspection, admission, ICMP errors and
// later fragments. Check says so for a configuration. It needs Linux 5.16 (the egress hook), CAP_NET_ADMIN and CAP_NET_RAW.
package nft
