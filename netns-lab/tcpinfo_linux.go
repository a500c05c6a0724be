// SPDX-License-Identifier: Apache-2.0

package netnslab

import (
	"fmt"
	"net"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TCPInfo is what a client's kernel says about one connection.
type TCPInfo struct {
	// State is the kernel's number of the TCP state; 1 is ESTABLISHED.
	State uint8 `json:"state"`
	// RTT is the smoothed round-trip time, RTO the current retransmission timeout.
	RTT time.Duration `json:"rtt"`
	RTO time.Duration `json:"rto"`
	// Cwnd is the congestion window, in segments of MSS bytes.
	Cwnd uint32 `json:"cwnd"`
	MSS  uint32 `json:"mss"`
	// Retransmitted counts the segments this end ever sent again.
	Retransmitted uint32 `json:"retransmitted"`
	// Timeouts counts the retransmission timeouts this end ever had. TimeoutsKnown is false on kernels below 6.7, which do not count them.
	Timeouts      uint16 `json:"timeouts"`
	TimeoutsKnown bool   `json:"timeoutsKnown"`
	// OutOfOrder counts the segments that came out of order, Duplicates (DSACK) those of ours that arrived twice.
	OutOfOrder uint32 `json:"outOfOrder"`
	Duplicates uint32 `json:"duplicates"`
	// BytesSent counts retransmissions too; BytesAcked and BytesReceived do not.
	BytesSent     uint64 `json:"bytesSent"`
	BytesAcked    uint64 `json:"bytesAcked"`
	BytesReceived uint64 `json:"bytesReceived"`
}

// ReadTCPInfo returns the state of conn's socket: a *net.TCPConn or whatever else gives one through SyscallConn. It works until conn is closed,
// also after a reset.
func ReadTCPInfo(conn syscall.Conn) (TCPInfo, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return TCPInfo{}, fmt.Errorf("tcp info: %w", err)
	}
	var (
		in   unix.TCPInfo
		size = uint32(unsafe.Sizeof(in))
		serr error
	)
	err = raw.Control(func(fd uintptr) {
		// Not unix.GetsockoptTCPInfo: only the returned size tells a count of 0 from none.
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.IPPROTO_TCP, unix.TCP_INFO,
			uintptr(unsafe.Pointer(&in)), uintptr(unsafe.Pointer(&size)), 0)
		if errno != 0 {
			serr = os.NewSyscallError("getsockopt", errno)
		}
	})
	if err == nil {
		err = serr
	}
	if err != nil {
		return TCPInfo{}, fmt.Errorf("tcp info: %w", err)
	}
	return TCPInfo{
		State:         in.State,
		RTT:           time.Duration(in.Rtt) * time.Microsecond,
		RTO:           time.Duration(in.Rto) * time.Microsecond,
		Cwnd:          in.Snd_cwnd,
		MSS:           in.Snd_mss,
		Retransmitted: in.Total_retrans,
		Timeouts:      in.Total_rto,
		TimeoutsKnown: uintptr(size) >= unsafe.Offsetof(in.Total_rto)+unsafe.Sizeof(in.Total_rto),
		OutOfOrder:    in.Rcv_ooopack,
		Duplicates:    in.Dsack_dups,
		BytesSent:     in.Bytes_sent,
		BytesAcked:    in.Bytes_acked,
		BytesReceived: in.Bytes_received,
	}, nil
}

var _ syscall.Conn = (*net.TCPConn)(nil)
