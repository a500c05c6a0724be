// SPDX-License-Identifier: Apache-2.0

// Package reqsk gives a TCP connection that another host has accepted to a server that nobody changed: nginx, HAProxy, redis, whatever
// calls accept(). The connection appears in the accept queue of the server's own listening socket, with what the client has sent in its receive
// queue, as if the handshake had taken place here. The server is not restarted, linked with anything, or asked.
//
// # In call order
//
// On the host that has accepted the connection and has looked at its request (MSG_PEEK), with package tcprepair:
//
//	err := tcprepair.Freeze(fd)
//	s, err := tcprepair.Take(fd, tcprepair.Limits{})
//
// On the server's host, once:
//
//	in, err := reqsk.Open(reqsk.Config{})
//
// and for each connection, when the path of its packets leads to this host:
//
//	err = in.Inject(s)
//
// Then, on the first host, tcprepair.Discard(fd); after an error another server's host or tcprepair.Resume(fd); after ErrReset and ErrUncertain
// tcprepair.Reset(fd).
//
// What the client sends while neither host has the connection must not reach a kernel that would answer with RST: package gate holds it
// (Hold before the path is switched, Release after Inject).
//
// # How it works
//
//	Inject ─► write() to a queue of the Injector's tun device
//	             ├─ tcx program: which listening socket? may it?  bpf_sk_assign_tcp_reqsk
//	             ├─ TCP: takes the segment for the last one of a handshake with a SYN cookie, makes the socket, queues it
//	             └─ tracepoint program: has it made one?
//	       ◄─ the answer of both, in memory shared with the programs
//
// The segment carries as much of the request as fits: 64 KiB in one, declared as several that an interface has merged. Its sequence numbers are
// those of the connection, the options and the clock of its timestamps are told to the kernel beside it (KERNEL 17). The kernel does all
// this within the write, so Inject knows the outcome when it returns, with one more look for whether everything was taken. Other packets are not
// concerned: the device is the Injector's own, and only it can write there. The tracepoint program is called for every change of
// state of a TCP socket on the machine, and returns at once for all but the birth of a passive one.
//
// What a first segment has no room for follows as ordinary segments as far as the server's receive window allows.
//
// # What has happened when Inject returns
//
//	nil                      the connection exists, with all of the request (or the server has ended it already: its own business)
//	ErrReset                 it existed, and has ended
//	ErrUncertain             it is not here, and may have been: do not deliver it again
//	any other error          no socket is left here, the client has heard nothing: deliver it elsewhere, or answer
//
// ErrUncertain takes a kernel without BPF tracepoints, or a host that was reconfigured, and a server that ends the connection in the same
// microseconds. One thing that the kernel does cannot be taken back: a listening socket that is closed within the fraction of a microsecond
// between the program's look and the queueing of the connection ends the connection (ErrReset).
//
// # Limits
//
//   - Nothing of ours may be under way: the first host has not answered (ErrUnsent). Mid-connection is fine, between two requests.
//   - ESTABLISHED, and CLOSE_WAIT: the client's FIN follows its request.
//   - The unread request must fit the server's receive buffer if the server does not read: about 118 KiB with the kernel's defaults
//     (net.ipv4.tcp_rmem), less if the server has set SO_RCVBUF. While the server reads there is no limit. One that does neither for
//     Config.Patience ends in ErrPartial.
//   - The server's socket announces a window of its own, 64 KiB at first (half of net.ipv4.tcp_rmem's second number). Where the accepting host
//     has announced far more, because SO_RCVBUF was raised there, what a client has under way beyond it is dropped and sent again: leave
//     its buffers at the default, or raise tcp_rmem here before the server starts.
//   - Listening sockets that speak MPTCP are refused (ErrMPTCP); Go's do by default. Those bound to a device (SO_BINDTODEVICE, VRF) are not found.
//   - Client's MSS of 536 (IPv6: 1220) at least. Window scaling, SACK and timestamps must not be switched off on this host if they were
//     negotiated. No link-local clients.
//   - TCP_SAVED_SYN is empty, SO_INCOMING_CPU and SO_INCOMING_NAPI_ID are those of the injection. Options of the accepted socket are those that
//     the listening socket hands down; what the snapshot says of options is not used. TCP_FASTOPEN and TCP_DEFER_ACCEPT work.
//   - The congestion window begins as that of every new connection. The RTT is taken over from Snapshot.Advice.
//   - A firewall must let pass what enters by the device (Config.Device), and accept a connection whose beginning it has not seen
//     (net.netfilter.nf_conntrack_tcp_loose is 1 by default).
//   - Timestamps that a host with Linux below 6.7 has read do not tell their unit (their lowest bit is used for it since).
//
// # What it needs
//
// Linux 6.9 with BTF, CONFIG_SYN_COOKIES and CONFIG_TUN (for IPv6 clients, IPv6 built in and not a module); CAP_NET_ADMIN, CAP_BPF, CAP_PERFMON; net.ipv4.tcp_syncookies 1 or 2; net.ipv4.conf.all.rp_filter
// 0 or 2; net.core.rps_default_mask 0 when Open is called. Probe tells what is missing. Nothing is left behind by a process that dies.
//
// The device has the IPv4 dummy address 192.0.0.8 (RFC 7600), without which loose reverse path filtering would drop what enters by it.
//
// # What it does not do
//
// It chooses no server, switches no path, holds no packets, and speaks to no other host. It does not know when the connection ends.
package reqsk
