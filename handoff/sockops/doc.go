// SPDX-License-Identifier: Apache-2.0

// Package sockops has the two BPF programs that the kernel calls when the state of a TCP socket changes: one makes a restored
// connection as fast as it was, the other tells when connections end.
//
// # Seeder
//
// A socket that TCP_REPAIR has rebuilt starts with the congestion window of a new connection, ten packets; the program sets
// the window to what the snapshot says, when the kernel calls it while the socket connects in repair mode.
//
//	s, err := sockops.Open("")      // once; on an error go on without: connections then start slowly
//	fd := …                         // a new socket, in repair mode
//	err = s.Seed(fd, window)        // before connect
//	…connect…                       // the window is in force, the seed is used up
//	err = s.Forget(fd)              // only if connect never happens
//
// The window is a claim about a path that may have changed with the server: halve it, or seed less, when the target is in
// another place than the source. Nothing but the window can be seeded: the slow start threshold only together with
// a permanent clamp of the window (TCP_BPF_SNDCWND_CLAMP), the round trip time not at all; the first acknowledgement
// brings it.
//
// It is attached to a cgroup and sees the sockets that processes in it and below have made. It costs one look-up for
// each connection that is opened (not accepted) there.
//
// # Watcher
//
//	w, err := sockops.Watch(sockops.WatchConfig{Services: addresses})
//	for ends, err := w.Read(nil); err == nil; ends, err = w.Read(ends[:0]) {
//		…                       // e.Flow is over; while e.Lingers(), its last packets may still come
//	}
//
// The program asks for the socket's state callback when a connection of one of the services is established: accepted (which a connection
// made by bpf_sk_assign_tcp_reqsk is, too), or connected in repair mode. The request stays with the socket, so that the next
// watcher, after a restart, sees it end; connections that were there before the first watcher are not seen.
//
// What the kernel calls when a connection ends, measured on Linux 6.18 (watcher_test.go): once for each socket, with the new state
// CLOSE, and never with TIME_WAIT. The old state tells how it ended:
//
//	LAST_ACK                      the peer closed first, and has acknowledged our FIN: nothing more comes
//	ESTABLISHED, CLOSE_WAIT,      a RST, of either side; the peer does not answer; closed with data unread;
//	FIN_WAIT1                     disconnected: nothing more is answered but with RST
//	FIN_WAIT2                     we closed first. The socket has become a TIME_WAIT (60 s), or, when the peer has not closed yet
//	                              and nobody has the socket open, a FIN_WAIT2 without a socket (tcp_fin_timeout, then TIME_WAIT);
//	                              a RST in FIN_WAIT2 looks the same
//	CLOSING                       both closed at once: TIME_WAIT
//	any, in repair mode           the connection lives elsewhere: connect(AF_UNSPEC), close or the owner's death. Not reported
//
// Whether the socket is in repair mode the program reads from the socket itself, by the kernel's BTF. So a connection that moves away is not
// an end, whoever moves it; one that is reset after a failed restore is.
//
// The program is attached at the top of the cgroup tree, and sees all sockets of the machine (in a container: of what is mounted there). It
// leaves alone those of other network namespaces; several watchers do not disturb one another. It takes 1 us of a connection's life, 70 ns
// for each time that the kernel calls it about others (BenchmarkConnection).
package sockops
