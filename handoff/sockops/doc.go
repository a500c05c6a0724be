// SPDX-License-Identifier: Apache-2.0

// Package sockops lets a restored connection go on at the speed it had. A socket that TCP_REPAIR has rebuilt starts with the
// congestion window of a new connection, ten packets; a BPF program that the kernel calls while the socket connects in
// repair mode sets the window to what the snapshot says.
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
// The program is attached to a cgroup and sees the sockets that processes in it and below have made. It costs one look-up for
// each connection that is opened (not accepted) there.
package sockops
