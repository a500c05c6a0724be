// SPDX-License-Identifier: Apache-2.0

package session

import "net/netip"

// Key names one flow as the client's packets carry it (SARA 3: 13 bytes for IPv4; IPv6 has its own width).
type Key struct {
	Client   netip.AddrPort
	Server   netip.AddrPort // the virtual address and port
	Protocol uint8          // IPPROTO_TCP or IPPROTO_UDP
}

// Announcement is a flow that signalling has promised and whose first packet has not come yet (SARA 7). A port of 0 is one
// that the signalling leaves open: the client of a passive FTP transfer, the server of an active one. At most one of the two is 0.
type Announcement struct {
	Client   netip.AddrPort
	Server   netip.AddrPort
	Protocol uint8
	Media    string // what it carries, for operators: "rtp", "rtcp", "ftp-data"
}
