// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"net/netip"

	"github.com/rehome-net/rehome/dispatcher/session"
)

// Protocol numbers of IP (RFC 5237's registry), as session.Key has them.
const (
	protoTCP = 6
	protoUDP = 17
)

// What an announced flow carries.
const (
	mediaRTP       = "rtp"
	mediaRTCP      = "rtcp"
	mediaDatagrams = "datagrams"
	mediaFTP       = "ftp-data"
)

// AnnounceMedia appends the flows that carry one stream from the client to the virtual address of the flow that signalled it: RTP and
// RTCP, or the one flow of Datagrams. Client and server say the ports; the addresses are the flow's own. With open, the
// client's ports are left open, as they are of a client behind NAT. A flow of which neither port is known is left out. mux says
// that both sides send RTCP on RTP's port.
func AnnounceMedia(list []session.Announcement, flow session.Key, client, server *Stream, mux, open bool) []session.Announcement {
	rtp, rtcp := client.RTP.Port(), client.RTCP.Port()
	if open || client.Open {
		rtp, rtcp = 0, 0
	}
	if server.Transport == Datagrams {
		return announce(list, flow, protoUDP, rtp, server.RTP.Port(), mediaDatagrams)
	}
	for i := range max(1, min(client.Pairs, server.Pairs)) {
		list = announce(list, flow, protoUDP, step(rtp, i), step(server.RTP.Port(), i), mediaRTP)
		if !mux {
			list = announce(list, flow, protoUDP, step(rtcp, i), step(server.RTCP.Port(), i), mediaRTCP)
		}
	}
	return list
}

// step returns the port of the i-th of consecutive pairs; past the last port there is none.
func step(port uint16, i uint8) uint16 {
	if next := uint32(port) + 2*uint32(i); port != 0 && next <= 0xffff {
		return uint16(next)
	}
	return 0
}

// AnnounceFTP returns the data connection of a control connection. One of the ports is 0.
func AnnounceFTP(flow session.Key, client, server uint16) []session.Announcement {
	return announce(nil, flow, protoTCP, client, server, mediaFTP)
}

func announce(list []session.Announcement, flow session.Key, protocol uint8, client, server uint16, media string) []session.Announcement {
	if client == 0 && server == 0 {
		return list
	}
	return append(list, session.Announcement{
		Client:   netip.AddrPortFrom(flow.Client.Addr(), client),
		Server:   netip.AddrPortFrom(flow.Server.Addr(), server),
		Protocol: protocol,
		Media:    media,
	})
}

// Names tells whether a description names another address than host. A description without an address, with a name in its
// place, or with the unspecified address (RFC 3264, 8.4: on hold) names none.
func Names(a netip.Addr, host netip.Addr) bool {
	return a.IsValid() && !a.IsUnspecified() && a != host
}
