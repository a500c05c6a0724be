// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"slices"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"
	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/dispatcher/session"
	netnslab "github.com/rehome-net/rehome/netns-lab"
)

// mediaFlow is a flow between the client and the virtual address, as the client names it.
type mediaFlow struct {
	Client, Server netip.AddrPort
	Protocol       uint8
}

// sighting counts a flow's packets at one host, by direction at that host.
type sighting struct {
	toServer, toClient int
	opened             bool // the host has sent a SYN to the client
}

// MediaTraffic is what the client and the servers have seen of media: all packets between the client and the virtual address but the
// signalling's.
type MediaTraffic struct {
	client  map[mediaFlow]sighting
	servers []map[mediaFlow]sighting
	// Missed counts packets that a capture could not keep up with: the other numbers are worth nothing unless it is 0.
	Missed int
}

// MediaCapture is a running capture on the client and all servers.
type MediaCapture struct {
	m        *Media
	captures []*netnslab.Capture // the client's, then the servers'
	files    []*bytes.Buffer
}

// mediaSnap holds the headers that are looked at.
const mediaSnap = 96

// Capture begins to watch the media.
func (m *Media) Capture() (*MediaCapture, error) {
	c := &MediaCapture{m: m}
	for _, host := range append([]string{ClientHost}, m.Servers()...) {
		file := &bytes.Buffer{}
		capture, err := m.host(host).Capture(netnslab.CaptureConfig{Pcap: file, SnapLen: mediaSnap})
		if err != nil {
			_, closing := c.Close()
			return nil, errors.Join(err, closing)
		}
		c.captures, c.files = append(c.captures, capture), append(c.files, file)
	}
	return c, nil
}

// Close ends the capture and returns what it saw.
func (c *MediaCapture) Close() (MediaTraffic, error) {
	var t MediaTraffic
	var errs []error
	hosts := append([]string{ClientHost}, c.m.Servers()...)
	for i, capture := range c.captures {
		trace, err := capture.Close()
		t.Missed += trace.Missed
		var link netnslab.Link
		if err == nil {
			link, err = c.m.host(hosts[i]).Link()
		}
		var seen map[mediaFlow]sighting
		if err == nil {
			seen, err = readMedia(c.files[i], link.MAC, c.m.host(ClientHost).Addr4(), c.m.VIP())
		}
		if i == 0 {
			t.client = seen
		} else {
			t.servers = append(t.servers, seen)
		}
		errs = append(errs, err)
	}
	return t, errors.Join(errs...)
}

// readMedia counts the media in a pcap file that was written at the host with that link-layer address.
func readMedia(file io.Reader, own net.HardwareAddr, client, vip netip.Addr) (map[mediaFlow]sighting, error) {
	r, err := pcapgo.NewReader(file)
	if err != nil {
		return nil, fmt.Errorf("media: %w", err)
	}
	var (
		eth   layers.Ethernet
		ip    layers.IPv4
		udp   layers.UDP
		tcp   layers.TCP
		found []gopacket.LayerType
	)
	parser := gopacket.NewDecodingLayerParser(layers.LayerTypeEthernet, &eth, &ip, &udp, &tcp)
	parser.IgnoreUnsupported = true
	seen := make(map[mediaFlow]sighting)
	for {
		frame, _, err := r.ReadPacketData()
		if errors.Is(err, io.EOF) {
			return seen, nil
		}
		if err != nil {
			return nil, fmt.Errorf("media: %w", err)
		}
		found = found[:0]
		_ = parser.DecodeLayers(frame, &found) // the payload is cut off; what was decoded is in found
		if !slices.Contains(found, layers.LayerTypeIPv4) {
			continue
		}
		src, _ := netip.AddrFromSlice(ip.SrcIP)
		dst, _ := netip.AddrFromSlice(ip.DstIP)
		var f mediaFlow
		var from, to uint16
		syn := false
		switch {
		case slices.Contains(found, layers.LayerTypeUDP):
			f.Protocol, from, to = unix.IPPROTO_UDP, uint16(udp.SrcPort), uint16(udp.DstPort)
		case slices.Contains(found, layers.LayerTypeTCP):
			f.Protocol, from, to, syn = unix.IPPROTO_TCP, uint16(tcp.SrcPort), uint16(tcp.DstPort), tcp.SYN && !tcp.ACK
		default:
			continue
		}
		toServer := src == client && dst == vip
		switch {
		case toServer:
			f.Client, f.Server = netip.AddrPortFrom(src, from), netip.AddrPortFrom(dst, to)
		case src == vip && dst == client:
			f.Client, f.Server = netip.AddrPortFrom(dst, to), netip.AddrPortFrom(src, from)
		default:
			continue
		}
		switch f.Server.Port() {
		case RTSPPort, SIPPort, FTPPort:
			continue
		}
		s := seen[f]
		if toServer {
			s.toServer++
		} else {
			s.toClient++
			s.opened = s.opened || syn && bytes.Equal(eth.SrcMAC, own)
		}
		seen[f] = s
	}
}

// MediaTally sums up a MediaTraffic.
type MediaTally struct {
	// Announced counts the flows on which the client has sent media, Misrouted those of them of which a packet came to another server than
	// the session's.
	Announced, Misrouted int
	// Packets counts the datagrams that client and servers sent, Lost those that did not arrive.
	Packets, Lost int
	// PerServer counts the flows that each server had.
	PerServer []int
	// Queried counts the flows of DNS, which nobody announces; they are not in Announced and PerServer. A flow belongs to the server that has
	// most of its packets.
	Queried int
}

// Tally sums up. The server of a flow is known by its port, or, for a data connection that the server opens, by who opened it.
func (t MediaTraffic) Tally() MediaTally {
	tally := MediaTally{PerServer: make([]int, len(t.servers))}
	flows := maps.Clone(t.client)
	for _, server := range t.servers {
		for f := range server {
			if _, ok := flows[f]; !ok {
				flows[f] = sighting{}
			}
		}
	}
	for f, client := range flows {
		home := t.home(f)
		received, sent, strayed := 0, 0, 0
		for i, server := range t.servers {
			s := server[f]
			if i == home {
				received += s.toServer
			} else {
				strayed += s.toServer
			}
			sent += s.toClient
		}
		switch {
		case client.toServer == 0:
		case f.Server.Port() == DNSPort:
			tally.Queried++
			if strayed > 0 {
				tally.Misrouted++
			}
		default:
			tally.Announced++
			if strayed > 0 || home < 0 {
				tally.Misrouted++
			} else {
				tally.PerServer[home]++
			}
		}
		if f.Protocol == unix.IPPROTO_UDP {
			tally.Packets += client.toServer + sent
			tally.Lost += max(client.toServer-received, 0) + max(sent-client.toClient, 0)
		}
	}
	return tally
}

// home returns the number of the server whose flow it is, -1 when nobody's.
func (t MediaTraffic) home(f mediaFlow) int {
	if f.Server.Port() == DNSPort {
		most := 0
		for i, server := range t.servers {
			if server[f].toServer > t.servers[most][f].toServer {
				most = i
			}
		}
		return most
	}
	for i, server := range t.servers {
		if server[f].opened {
			return i
		}
	}
	for _, first := range []int{rtpPorts, sipPorts, ftpPorts} {
		if i := (int(f.Server.Port()) - first) / portsEach; int(f.Server.Port()) >= first && i < len(t.servers) {
			return i
		}
	}
	return -1
}

// Unannounced returns the flows on which the client has sent media, DNS left out, and that none of the announcements is about.
func (t MediaTraffic) Unannounced(list []session.Announcement) []session.Key {
	var missing []session.Key
	for f, s := range t.client {
		covers := func(a session.Announcement) bool {
			return a.Protocol == f.Protocol && covered(a.Client, f.Client) && covered(a.Server, f.Server)
		}
		if s.toServer > 0 && f.Server.Port() != DNSPort && !slices.ContainsFunc(list, covers) {
			missing = append(missing, session.Key{Client: f.Client, Server: f.Server, Protocol: f.Protocol})
		}
	}
	return missing
}

// covered reports whether an address is the one that was announced, whose port may be open.
func covered(announced, a netip.AddrPort) bool {
	return announced.Addr() == a.Addr() && (announced.Port() == 0 || announced.Port() == a.Port())
}
