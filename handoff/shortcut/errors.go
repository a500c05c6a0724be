// SPDX-License-Identifier: Apache-2.0

package shortcut

import "errors"

// Why frames go the whole way. All are matched with errors.Is.
var (
	// ErrNotVeth means that the interface is not one end of a veth pair with an Ethernet header.
	ErrNotVeth = errors.New("not one end of a veth pair")
	// ErrSameNamespace means that the other end is in the same network namespace, to which the kernel does not redirect so.
	ErrSameNamespace = errors.New("the other end of its veth pair is in the same network namespace")
	// ErrDown means that one end of the pair is down.
	ErrDown = errors.New("one end of its veth pair is down")
	// ErrObserved means that something stands at the interface's way out, which would not see the frames.
	ErrObserved = errors.New("something at its way out would not see the frames")
	// ErrNoNeighbour means that nobody is known whom to ask whether frames arrive.
	ErrNoNeighbour = errors.New("no IPv4 neighbour is known to ask whether frames arrive")
	// ErrLost means that no neighbour has answered what was sent by the shortcut.
	ErrLost = errors.New("frames sent by the other end of its veth pair get no answer")
)
