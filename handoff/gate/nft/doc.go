// SPDX-License-Identifier: Apache-2.0

// Package nft is a forwarder for kernels that refuse BPF: it sends the packets of TCP connections that were handed to a server on to
// that server at layer 2, like package forward, with nftables' netdev family. It has the same methods, so that either can be
// driven by one caller.
//
// # The ruleset
//
//	table netdev rehome
//	  set fresh4, fresh6:  client . port . service . port     connections that have begun and are this host's
//	  map flows4, flows6:  the same key : goto node-<n>       connections that were handed over
//	  chain ingress-<interface>
//	    a SYN: update @fresh, accept
//	    its key in @fresh: accept
//	    vmap @flows
//	  chain node-<n>
//	    ether daddr and saddr set, dup to the interface, drop
//
// A SYN decides anew, as in package forward: a port that is used again must not follow an old connection. Commit takes the key out of
// fresh and puts it into flows, in one transaction of nftables; the epoch is in the element's comment, so that tables and epochs outlive the
// process. A transaction costs an RCU grace period, milliseconds, where a BPF map costs a microsecond.
//
// # What it cannot do
//
// Choose servers (services are this host's, node 0), UDP, announced flows, diversion, inspection, admission, counters, ICMP errors and
// later fragments. Check says so for a configuration. It does not know when a connection was last used: entries go when an agent reports the end
// (Forget), or when their ports are used again.
package nft
