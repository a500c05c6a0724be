// SPDX-License-Identifier: Apache-2.0

// Package cookie makes connections of a server's own listening socket from the first packets of clients that a dispatcher has
// shaken hands with (package synproxy), without anything in user space. The server is unchanged: nginx, redis, whatever calls accept().
//
// It also has what both sides must agree upon: the cookie (Seal, Recall) and its Parameters.
//
// # In call order, at a backend
//
//	a, err := cookie.Open(cookie.Config{Interface: "eth0", PinPath: "/sys/fs/bpf/rehome-cookie", Parameters: cookie.Parameters{Secret: secret}})
//	err = a.AddService(vip)
//	err = a.Run(ctx, func(r cookie.Report) { ... }) // tell the dispatcher: synproxy.Proxy.Return
//
// # How it works
//
// The dispatcher's SYN-ACK carries, instead of state, a number that proves that the client has got it, and all options (layout.go). The client
// repeats both in each packet until it hears from a server. A program at the interface looks at every packet with data to a service
// that has no socket as yet:
//
//	valid cookie, listening socket       ► bpf_sk_assign_tcp_reqsk: the kernel makes the connection, and queues the data
//	valid cookie, TIME_WAIT in the way   ► that is ended as a SYN would have done (RFC 6191), then as above
//	valid cookie, connection made before ► a late copy: dropped
//	valid cookie, anything else          ► dropped, and reported with the reason
//	no valid cookie                      ► the stack's, which answers RST; dropped, if the connection was reported just now
//
// Packets of existing connections, and those without data, cost a few comparisons or one look for the socket.
//
// # Time and secrets
//
// Cookies live for two to three periods of 34 s. Clocks of hosts may differ by some seconds. See Parameters for how to change a secret.
//
// # Limits
//
//   - The client must speak first.
//   - Listening sockets that speak MPTCP are refused (ReasonMPTCP); Go's do by default. Those bound to a device are not found.
//   - Between the look at the accept queue and the queueing another connection may take the last place. Then nothing is reported; the
//     client sends again, and this is looked at anew.
//   - Without BPF tracepoints in the kernel (CONFIG_BPF_EVENTS) a late copy of a first packet can become a second connection, as with
//     the kernel's own SYN cookies. So it can after 131072 more connections.
//   - net.ipv4.tcp_rfc1337 must be 0 (the default), else a TIME_WAIT stays in the way (ReasonTimeWait).
//   - The server's first window must not be smaller than what the dispatcher announces (synproxy.Config.Window): leave SO_RCVBUF alone.
//   - TCP_SAVED_SYN is empty.
//
// # What it needs
//
// Linux 6.9 with BTF, CONFIG_SYN_COOKIES, CONFIG_NET_XGRESS; CAP_NET_ADMIN, CAP_BPF, CAP_PERFMON; net.ipv4.tcp_syncookies 1 or 2.
package cookie
