// SPDX-License-Identifier: Apache-2.0

package tcprepair

// Adopt takes over the descriptor of a connection that another process has restored and not thawed, because it died. It owns
// fd unless it returns an error. What that process still had to give to the kernel (Snapshot.Late) is lost: when there was
// anything, the connection can only be Reset.
func Adopt(fd int) (*Restored, error) {
	flow, _, err := flowOf(socket(fd))
	if err != nil {
		return nil, &OpError{Op: "adopt", Err: err}
	}
	return &Restored{sock: socket(fd), raw: -1, flow: flow, snap: &Snapshot{Flow: flow, State: Established}}, nil
}

// Late reports whether Thaw will have to give something to the kernel that Restore could not: unsent data, or a FIN that has not
// been sent or (in Closing) received yet. An option that Thaw sets late, such as TCP_NOTSENT_LOWAT, can be done without.
func (s *Snapshot) Late() bool {
	return len(s.Unsent) > 0 || s.State.Closed() && !s.FinSent || s.State == Closing
}
