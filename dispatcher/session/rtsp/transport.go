// SPDX-License-Identifier: Apache-2.0

package rtsp

import (
	"bytes"
	"net/netip"

	"github.com/rehome-net/rehome/dispatcher/session/inspect"
)

// appendTransports appends the streams of a Transport field (RFC 2326, 12.39; RFC 7826, 18.54), as side describes them.
func appendTransports(list []inspect.Stream, value []byte, side inspect.Side) []inspect.Stream {
	for len(value) > 0 && len(list) < inspect.MaxStreams {
		var spec []byte
		spec, value = cut(value, ',')
		if spec = bytes.TrimSpace(spec); len(spec) > 0 {
			list = append(list, parseTransport(spec, side))
		}
	}
	return list
}

// cut splits b at the first separator outside quotes.
func cut(b []byte, separator byte) (before, after []byte) {
	quoted := false
	for i, c := range b {
		switch {
		case c == '"':
			quoted = !quoted
		case c == separator && !quoted:
			return b[:i], b[i+1:]
		}
	}
	return b, nil
}

// ends are the two addresses of one end of a stream: RTP's and RTCP's.
type ends struct{ rtp, rtcp netip.AddrPort }

// fill completes what the parameters left out: the address that a parameter of its own names, and RTCP's port (RFC 3550, 11).
func (e *ends) fill(host netip.Addr) {
	if host.IsValid() && !e.rtp.Addr().IsValid() {
		e.rtp = netip.AddrPortFrom(host, e.rtp.Port())
	}
	if port := e.rtp.Port(); e.rtcp.Port() == 0 && port != 0 && port < 0xffff {
		e.rtcp = netip.AddrPortFrom(e.rtp.Addr(), port+1)
	}
	if !e.rtcp.Addr().IsValid() {
		e.rtcp = netip.AddrPortFrom(e.rtp.Addr(), e.rtcp.Port())
	}
}

func parseTransport(spec []byte, side inspect.Side) inspect.Stream {
	protocol, parameters := cut(spec, ';')
	var client, server ends
	var destination, source netip.Addr
	var unicast, multicast, interleaved, mux bool
	for len(parameters) > 0 {
		var p []byte
		p, parameters = cut(parameters, ';')
		key, value := cut(bytes.TrimSpace(p), '=')
		value = bytes.TrimSpace(value)
		switch string(bytes.ToLower(bytes.TrimSpace(key))) {
		case "unicast":
			unicast = true
		case "multicast":
			multicast = true
		case "interleaved":
			interleaved = true
		case "rtcp-mux":
			mux = true
		case "client_port":
			client = portRange(value)
		case "server_port":
			server = portRange(value)
		case "dest_addr":
			client = addresses(value)
		case "src_addr":
			server = addresses(value)
		case "destination":
			destination = address(string(value))
		case "source":
			source = address(string(value))
		}
	}
	s := inspect.Stream{Transport: transportOf(protocol, interleaved), Mux: mux}
	named := client != ends{} || server != ends{}
	// Without either word the RFCs mean multicast, but clients that name their ports mean unicast.
	if s.Transport != inspect.Interleaved && (multicast || !unicast && !named) {
		s.Transport = inspect.Multicast
	}
	if s.Transport != inspect.RTP && s.Transport != inspect.Datagrams {
		return inspect.Stream{Transport: s.Transport}
	}
	client.fill(destination)
	server.fill(source)
	if s.Transport == inspect.Datagrams {
		client.rtcp, server.rtcp = netip.AddrPort{}, netip.AddrPort{}
	}
	s.RTP, s.RTCP, s.PeerRTP, s.PeerRTCP = client.rtp, client.rtcp, server.rtp, server.rtcp
	if side == inspect.Server {
		s.RTP, s.RTCP, s.PeerRTP, s.PeerRTCP = server.rtp, server.rtcp, client.rtp, client.rtcp
	}
	return s
}

// transportOf reads "RTP/AVP", "RTP/AVP/TCP", "MP2T/H2221/UDP" and the like: the lower transport is UDP unless it is said.
func transportOf(protocol []byte, interleaved bool) inspect.Transport {
	upper, rest, _ := bytes.Cut(bytes.ToUpper(bytes.TrimSpace(protocol)), []byte("/"))
	_, lower, _ := bytes.Cut(rest, []byte("/"))
	switch {
	case interleaved:
		return inspect.Interleaved
	case string(lower) == "TCP":
		return inspect.Unsupported // a connection of its own (RFC 7826, appendix C.2.2)
	case len(lower) != 0 && string(lower) != "UDP":
		return inspect.Unsupported
	case string(upper) == "RTP":
		return inspect.RTP
	case string(lower) == "UDP":
		return inspect.Datagrams
	}
	return inspect.Unsupported
}

// portRange reads "8000-8001" or "8000".
func portRange(b []byte) (e ends) {
	first, second, _ := bytes.Cut(b, []byte("-"))
	if n, ok := inspect.Number(bytes.TrimSpace(first), 0xffff); ok {
		e.rtp = netip.AddrPortFrom(netip.Addr{}, uint16(n))
	}
	if n, ok := inspect.Number(bytes.TrimSpace(second), 0xffff); ok {
		e.rtcp = netip.AddrPortFrom(netip.Addr{}, uint16(n))
	}
	return e
}

// addresses reads the quoted addresses of dest_addr and src_addr, RTP's and RTCP's with a slash between them.
func addresses(b []byte) (e ends) {
	first, rest := cut(b, '/')
	second, _ := cut(rest, '/')
	return ends{rtp: addrPort(first), rtcp: addrPort(second)}
}

// addrPort reads "192.0.2.5:8000", ":8000" or "[2001:db8::5]:8000", with its quotes.
func addrPort(b []byte) netip.AddrPort {
	s := string(bytes.Trim(bytes.TrimSpace(b), `"`))
	at := len(s)
	for at > 0 && s[at-1] >= '0' && s[at-1] <= '9' {
		at--
	}
	if at == 0 || s[at-1] != ':' {
		return netip.AddrPortFrom(address(s), 0)
	}
	port, _ := inspect.Number([]byte(s[at:]), 0xffff)
	return netip.AddrPortFrom(address(s[:at-1]), uint16(port))
}

// address returns an address, in brackets or not; the zero Addr for a name.
func address(s string) netip.Addr {
	if n := len(s); n > 2 && s[0] == '[' && s[n-1] == ']' {
		s = s[1 : n-1]
	}
	a, err := netip.ParseAddr(s)
	if err != nil {
		return netip.Addr{}
	}
	return a.Unmap().WithZone("")
}
