// SPDX-License-Identifier: Apache-2.0

package tcprepair

import "strconv"

// State is the TCP state of a connection (RFC 9293, 3.3.2), with the numbers Linux gives them in TCP_INFO.
//
// The states above the line are moved; Freeze refuses the rest with ErrState.
//
//	                  Established
//	   our FIN sent /             \ peer's FIN received
//	          FinWait1             CloseWait
//	 acked /         \ peer's FIN      | our FIN sent
//	FinWait2        Closing         LastAck
//	- - - - - - - - - - - - - - - - - - - - - - - - -
//	LISTEN  SYN_SENT  SYN_RECV  TIME_WAIT  CLOSE
type State uint8

// The states that can be moved.
const (
	Established State = 1
	FinWait1    State = 4
	FinWait2    State = 5
	CloseWait   State = 8
	LastAck     State = 9
	Closing     State = 11
)

// The states that cannot.
const (
	synSent  State = 2
	synRecv  State = 3
	timeWait State = 6
	closed   State = 7
	listen   State = 10
)

// Movable reports whether a connection in this state can be moved.
func (s State) Movable() bool {
	switch s {
	case Established, FinWait1, FinWait2, CloseWait, LastAck, Closing:
		return true
	}
	return false
}

// PeerClosed reports whether the peer's FIN has been received: after the last byte of Snapshot.Received comes the end of the stream.
func (s State) PeerClosed() bool { return s == CloseWait || s == LastAck || s == Closing }

// Closed reports whether the application has ended its direction: a FIN follows the last byte of Snapshot.Unsent.
func (s State) Closed() bool { return s == FinWait1 || s == FinWait2 || s == LastAck || s == Closing }

// finPending reports whether our FIN waits in the send queue, sent or not, to be acknowledged.
func (s State) finPending() bool { return s == FinWait1 || s == LastAck || s == Closing }

// String returns the state as RFC 9293 spells it, with the underscores of ss and netstat.
func (s State) String() string {
	switch s {
	case Established:
		return "ESTABLISHED"
	case synSent:
		return "SYN_SENT"
	case synRecv:
		return "SYN_RECV"
	case FinWait1:
		return "FIN_WAIT1"
	case FinWait2:
		return "FIN_WAIT2"
	case timeWait:
		return "TIME_WAIT"
	case closed:
		return "CLOSE"
	case CloseWait:
		return "CLOSE_WAIT"
	case LastAck:
		return "LAST_ACK"
	case listen:
		return "LISTEN"
	case Closing:
		return "CLOSING"
	}
	return "state " + strconv.Itoa(int(s))
}
