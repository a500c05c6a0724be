// SPDX-License-Identifier: Apache-2.0

package tcprepair

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// From linux/inet_diag.h and linux/tcp.h.
const (
	diagInfo    = 2  // INET_DIAG_INFO
	diagMD5     = 18 // INET_DIAG_MD5SIG
	tcpAOInfo   = 40 // TCP_AO_INFO
	diagReqSize = 56 // struct inet_diag_req_v2
	diagMsgSize = 72 // struct inet_diag_msg
)

// unsigned returns ErrAuth if the connection's segments are signed.
//
// No socket option tells of MD5 keys. But Linux never agrees to timestamps and SACK both on a connection that has one (there
// would be no room for SACK blocks), so a connection with both is known to be unsigned; only for others is the kernel's table
// of sockets asked, at ten times the price. A key set on a connection that is up already, with both options, goes unnoticed.
//
// TCP-AO makes room for its signature in the send MSS: one that fills the path MTU is that of an unsigned connection.
func unsigned(s socket, info *tcpInfo) error {
	const header4, timestamps = 20 + 20, 12
	const both = infoTimestamps | infoSACK
	mss := info.sendMSS
	if info.options&infoTimestamps != 0 {
		mss += timestamps
	}
	if mss+header4 != info.pathMTU {
		// EINVAL: the kernel wants more room for its answer, so it has one. Without TCP-AO it is ENOENT or ENOPROTOOPT.
		if _, err := s.getPair(unix.IPPROTO_TCP, tcpAOInfo); err == nil || errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("%w: TCP-AO", ErrAuth)
		}
	}
	if info.options&both == both {
		return nil
	}
	flow, v6, err := flowOf(s)
	if err != nil {
		return err
	}
	cookie, err := s.getPair(unix.SOL_SOCKET, unix.SO_COOKIE)
	if err != nil {
		return fmt.Errorf("read SO_COOKIE: %w", err)
	}
	signed, err := diagSigned(flow, v6, cookie)
	if err != nil {
		return fmt.Errorf("%w: whether the connection is signed with TCP-MD5 cannot be told (sock_diag, in the caller's network namespace): %w", ErrUnsupported, err)
	}
	if signed {
		return fmt.Errorf("%w: TCP-MD5", ErrAuth)
	}
	return nil
}

// diagSigned asks sock_diag for one socket and looks for keys in the answer.
func diagSigned(flow Flow, v6 bool, cookie [2]uint32) (bool, error) {
	nl, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return false, err
	}
	defer socket(nl).close()
	if err := unix.Sendto(nl, diagRequest(flow, v6, cookie), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return false, err
	}
	answer := make([]byte, 16<<10)
	n, _, err := unix.Recvfrom(nl, answer, unix.MSG_DONTWAIT) // the kernel has answered before sendto returned
	if err != nil {
		return false, err
	}
	return diagHasKeys(answer[:n])
}

func diagRequest(flow Flow, v6 bool, cookie [2]uint32) []byte {
	b := make([]byte, unix.NLMSG_HDRLEN, unix.NLMSG_HDRLEN+diagReqSize)
	binary.NativeEndian.PutUint32(b, unix.NLMSG_HDRLEN+diagReqSize)
	binary.NativeEndian.PutUint16(b[4:], unix.SOCK_DIAG_BY_FAMILY)
	binary.NativeEndian.PutUint16(b[6:], unix.NLM_F_REQUEST)
	family := byte(unix.AF_INET)
	if v6 && flow.Local.Addr().Is6() {
		family = unix.AF_INET6
	}
	b = append(b, family, unix.IPPROTO_TCP, 1<<(diagInfo-1), 0) // keys come with TCP_INFO only
	b = binary.NativeEndian.AppendUint32(b, 1<<32-1)            // any state
	b = binary.BigEndian.AppendUint16(b, flow.Local.Port())
	b = binary.BigEndian.AppendUint16(b, flow.Remote.Port())
	for _, a := range [...]netip.Addr{flow.Local.Addr(), flow.Remote.Addr()} {
		var ip [16]byte
		copy(ip[:], a.AsSlice())
		b = append(b, ip[:]...)
	}
	b = binary.NativeEndian.AppendUint32(b, 0) // any interface
	b = binary.NativeEndian.AppendUint32(b, cookie[0])
	return binary.NativeEndian.AppendUint32(b, cookie[1])
}

// diagHasKeys looks for the attribute that lists MD5 keys; the kernel leaves it out when there are none.
func diagHasKeys(b []byte) (bool, error) {
	if len(b) < unix.NLMSG_HDRLEN+4 {
		return false, unix.EPROTO
	}
	size := binary.NativeEndian.Uint32(b)
	switch kind := binary.NativeEndian.Uint16(b[4:]); {
	case kind == unix.NLMSG_ERROR:
		return false, unix.Errno(-int32(binary.NativeEndian.Uint32(b[unix.NLMSG_HDRLEN:])))
	case kind != unix.SOCK_DIAG_BY_FAMILY, uint64(size) > uint64(len(b)), size < unix.NLMSG_HDRLEN+diagMsgSize:
		return false, unix.EPROTO
	}
	for b = b[unix.NLMSG_HDRLEN+diagMsgSize : size]; len(b) >= 4; {
		n := int(binary.NativeEndian.Uint16(b))
		if n < 4 || n > len(b) {
			return false, unix.EPROTO
		}
		if binary.NativeEndian.Uint16(b[2:]) == diagMD5 {
			return true, nil
		}
		b = b[min((n+3)&^3, len(b)):]
	}
	return false, nil
}
