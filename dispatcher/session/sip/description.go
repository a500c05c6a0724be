// SPDX-License-Identifier: Apache-2.0

package sip

import (
	"bytes"
	"errors"
	"io"
	"mime"
	"mime/multipart"
	"net/netip"
	"strconv"
	"strings"

	"github.com/pion/sdp/v3"

	"github.com/rehome-net/rehome/dispatcher/session/inspect"
)

const (
	typeSDP       = "application/sdp"
	typeMultipart = "multipart/"
	// maxParts of a multipart body are looked at.
	maxParts = 8
	// portDiscard stands for a port that ICE has yet to find (RFC 8839, 4.2.1.1).
	portDiscard = 9
)

// describe returns the streams of the session description in a body; none when the body has none. ok is false when it has one that
// cannot be read.
func describe(kind string, content []byte) (streams []inspect.Stream, ok bool) {
	media, parameters, err := mime.ParseMediaType(kind)
	switch {
	case kind == "" && bytes.HasPrefix(content, []byte("v=0")):
		media = typeSDP
	case kind == "":
	case err != nil && !errors.Is(err, mime.ErrInvalidMediaParameter):
		return nil, false
	}
	switch {
	case media == typeSDP:
		return parseSDP(content)
	case strings.HasPrefix(media, typeMultipart):
		return describePart(parameters["boundary"], content)
	}
	return nil, true
}

// describePart finds the description among a body's parts, with ISDN signalling or a location beside it (RFC 5621, 3).
func describePart(boundary string, content []byte) ([]inspect.Stream, bool) {
	if boundary == "" {
		return nil, false
	}
	r := multipart.NewReader(bytes.NewReader(content), boundary)
	for range maxParts {
		part, err := r.NextRawPart()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, false
		}
		if media, _, _ := mime.ParseMediaType(part.Header.Get("Content-Type")); media != typeSDP {
			continue
		}
		text, err := io.ReadAll(part)
		if err != nil {
			return nil, false
		}
		return parseSDP(text)
	}
	return nil, true
}

// parseSDP reads a session description (RFC 8866). An inspector must be more lenient than an endpoint: what the two sides accept has to be
// forwarded. So only the lines that say where media go are read, whatever stands around them and in which order.
func parseSDP(content []byte) (streams []inspect.Stream, ok bool) {
	text, transports := essence(string(content))
	var d sdp.SessionDescription
	if err := d.UnmarshalString(text); err != nil || len(d.MediaDescriptions) != len(transports) {
		return nil, false
	}
	for i, m := range d.MediaDescriptions {
		where := d.ConnectionInformation
		if m.ConnectionInformation != nil {
			where = m.ConnectionInformation
		}
		streams = append(streams, stream(m, where, transports[i]))
	}
	return streams, true
}

// essence returns a description of only the lines that matter, in the grammar's order and with registered names alone, and the
// transport of each of its media.
func essence(text string) (string, []inspect.Transport) {
	var out strings.Builder
	var transports []inspect.Transport
	var session, media string // the connection of the session, and the lines of the present medium
	var connection string     // of the present medium
	begun := false
	flush := func() {
		if begun {
			out.WriteString(connection + media)
		} else {
			out.WriteString("v=0\r\no=- 0 0 IN IP4 0.0.0.0\r\ns=-\r\n" + session + "t=0 0\r\n")
		}
		connection, media, begun = "", "", true
	}
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\r\n")
		switch {
		case strings.HasPrefix(line, "m="):
			words := strings.Fields(line[2:])
			if len(words) < 3 {
				words = []string{"", "0", ""}
			}
			if len(transports) == inspect.MaxStreams {
				break
			}
			flush()
			out.WriteString("m=audio " + words[1] + " RTP/AVP 0\r\n")
			transports = append(transports, transportOf(words[2]))
		case strings.HasPrefix(line, "c=") && begun:
			connection = line + "\r\n"
		case strings.HasPrefix(line, "c="):
			session = line + "\r\n"
		case begun && matters(line):
			media += line + "\r\n"
		}
	}
	flush()
	return out.String(), transports
}

// matters tells which attributes do. Of the candidates, that there are any.
func matters(line string) bool {
	return strings.HasPrefix(line, "a=rtcp:") || line == "a=rtcp-mux" || line == "a=rtcp-mux-only" || strings.HasPrefix(line, "a=candidate:")
}

// transportOf reads a medium's protocol (RFC 8866, 5.14).
func transportOf(protocol string) inspect.Transport {
	protocol = strings.ToUpper(protocol)
	switch {
	case strings.HasPrefix(protocol, "RTP/"), strings.HasPrefix(protocol, "UDP/TLS/RTP/"):
		return inspect.RTP
	case protocol == "UDP", protocol == "UDPTL", strings.HasPrefix(protocol, "UDP/"), protocol == "DTLS/SCTP":
		return inspect.Datagrams
	}
	return inspect.Unsupported
}

func stream(m *sdp.MediaDescription, where *sdp.ConnectionInformation, transport inspect.Transport) inspect.Stream {
	port := m.MediaName.Port.Value
	if port == 0 {
		return inspect.Stream{Transport: inspect.Rejected} // RFC 3264, 6
	}
	s := inspect.Stream{Transport: transport}
	var host netip.Addr
	if where != nil && where.Address != nil {
		host = address(where.Address.Address)
	}
	if host.IsMulticast() {
		return inspect.Stream{Transport: inspect.Multicast, RTP: netip.AddrPortFrom(host, uint16(port))}
	}
	_, s.Open = m.Attribute("candidate")
	if port == portDiscard {
		s.Open, port = true, 0
	}
	s.RTP = netip.AddrPortFrom(host, uint16(port))
	if transport != inspect.RTP {
		return s
	}
	if n := m.MediaName.Port.Range; n != nil && *n > 0 && *n <= maxPairs {
		s.Pairs = uint8(*n)
	}
	if _, s.Mux = m.Attribute("rtcp-mux"); !s.Mux {
		_, s.Mux = m.Attribute("rtcp-mux-only")
	}
	s.RTCP = rtcp(m, s.RTP)
	return s
}

// maxPairs is the largest number of consecutive pairs of ports in one medium.
const maxPairs = 4

// rtcp returns where RTCP is received: the attribute says it (RFC 3605), or it is the port after RTP's.
func rtcp(m *sdp.MediaDescription, rtp netip.AddrPort) netip.AddrPort {
	if v, ok := m.Attribute("rtcp"); ok {
		words := strings.Fields(v)
		if len(words) == 0 {
			return netip.AddrPort{}
		}
		port, err := strconv.ParseUint(words[0], 10, 16)
		if err != nil {
			return netip.AddrPort{}
		}
		host := rtp.Addr()
		if len(words) == 4 {
			host = address(words[3])
		}
		return netip.AddrPortFrom(host, uint16(port))
	}
	if rtp.Port() == 0 || rtp.Port() == 0xffff {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(rtp.Addr(), rtp.Port()+1)
}

// address reads a connection address without its time to live; the zero Addr for a name.
func address(s string) netip.Addr {
	s, _, _ = strings.Cut(s, "/")
	a, err := netip.ParseAddr(s)
	if err != nil {
		return netip.Addr{}
	}
	return a.Unmap().WithZone("")
}
