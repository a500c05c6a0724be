// SPDX-License-Identifier: Apache-2.0

package streamer

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/emiago/sipgo/sip"
	"github.com/pion/sdp/v3"
)

// Status codes of SIP (RFC 3261, 21) that are used here.
const (
	sipOK             = 200
	sipUnavailable    = 480
	sipNoCall         = 481
	sipBusy           = 486
	sipNotAcceptable  = 488
	sipServerError    = 500
	sipNotImplemented = 501
)

var sipReasons = map[int]string{ //nolint:gochecknoglobals // a constant
	sipOK: "OK", sipUnavailable: "Temporarily Unavailable", sipNoCall: "Call/Transaction Does Not Exist", sipBusy: "Busy Here",
	sipNotAcceptable: "Not Acceptable Here", sipServerError: "Server Internal Error", sipNotImplemented: "Not Implemented",
}

// call is converse for SIP: the called side, with one call at a time on a connection.
func (s *session) call(input []byte) (reply, rest []byte, err error) {
	r, rest, err := nextCall(input)
	if err != nil {
		return nil, rest, err
	}
	if r.IsAck() {
		if s.ours(r) && s.rec.Mode == idle {
			s.rec.Mode = playing
			s.rec.Sent.begin()
		}
		return nil, rest, nil
	}
	code, body := s.decide(r)
	w := sip.NewResponseFromRequest(r, code, sipReasons[code], body)
	if s.ours(r) {
		w.To().Params = sip.HeaderParams{"tag": s.rec.Session}
	}
	at := netip.AddrPortFrom(s.local, s.signalPort)
	w.AppendHeader(sip.NewHeader("Contact", fmt.Sprintf("<sip:%v;transport=tcp>", at)))
	if len(body) > 0 {
		w.AppendHeader(sip.NewHeader("Content-Type", "application/sdp"))
	}
	return []byte(w.String()), rest, nil
}

// nextCall takes a request off the bytes that have come.
func nextCall(input []byte) (_ *sip.Request, rest []byte, err error) {
	if input, err = trim(input); err != nil {
		return nil, nil, err
	}
	if !bytes.Contains(input, []byte("\r\n\r\n")) {
		return nil, input, errIncomplete
	}
	m, n, err := sip.NewParser().Parse(input, true)
	if errors.Is(err, sip.ErrParseReadBodyIncomplete) && m != nil && m.ContentLength() != nil {
		return nil, input, errIncomplete
	}
	if err != nil {
		return nil, nil, err
	}
	r, ok := m.(*sip.Request)
	if !ok || r.CallID() == nil || r.From() == nil || r.To() == nil || r.CSeq() == nil || r.Via() == nil {
		return nil, nil, fmt.Errorf("%.60q is no request with all that one needs", m.String())
	}
	return r, input[n:], nil
}

// ours reports whether a request is of the call that the session has.
func (s *session) ours(r *sip.Request) bool {
	return s.rec.Call != "" && r.CallID().Value() == s.rec.Call
}

// decide decides on a request. s.mu is held.
func (s *session) decide(r *sip.Request) (code int, body []byte) {
	switch {
	case r.Method == sip.OPTIONS:
		return sipOK, nil
	case r.IsInvite() && s.rec.Call == "":
		return s.invite(r)
	case r.IsInvite() && !s.ours(r):
		return sipBusy, nil
	case !s.ours(r):
		return sipNoCall, nil
	}
	switch r.Method {
	case sip.INVITE: // again: nothing changes
		return sipOK, offer(s.rec.Server)
	case sip.INFO:
		if s.ending() {
			return sipUnavailable, nil
		}
		return sipOK, nil
	case sip.BYE:
		s.rec.Mode = idle
		return sipOK, nil
	}
	return sipNotImplemented, nil
}

// invite opens the sockets for what a caller offers. Media come from where the connection does.
func (s *session) invite(r *sip.Request) (code int, body []byte) {
	port, err := offered(r.Body())
	if err != nil {
		return sipNotAcceptable, nil
	}
	client, server := netip.AddrPortFrom(s.remote, port), netip.AddrPortFrom(s.local, s.port())
	if err := s.open(client, server); err != nil {
		s.log.Warn("sockets", "client", client, "error", err)
		return sipServerError, nil
	}
	s.rec.Call, s.rec.Client, s.rec.Server = r.CallID().Value(), client, server
	s.rec.Session, s.rec.Sent = newSession()
	return sipOK, offer(server)
}

// offered returns the port of the first medium in a caller's description; it must be audio in G.711 (payload type 0), with RTCP at the next port.
func offered(body []byte) (uint16, error) {
	var d sdp.SessionDescription
	if err := d.Unmarshal(body); err != nil {
		return 0, err
	}
	if len(d.MediaDescriptions) != 1 {
		return 0, fmt.Errorf("%d media: want one", len(d.MediaDescriptions))
	}
	m := d.MediaDescriptions[0].MediaName
	if p := m.Port.Value; m.Media != "audio" || p <= 0 || p > 65534 || p%2 != 0 || !slices.Contains(m.Formats, "0") {
		return 0, fmt.Errorf("%s: want audio in G.711 at an even port", m.String())
	}
	return uint16(m.Port.Value), nil
}

// offer is the server's description (RFC 8866).
func offer(server netip.AddrPort) []byte {
	family := "IP4"
	if server.Addr().Is6() {
		family = "IP6"
	}
	return fmt.Appendf(nil, "v=0\r\no=- 0 0 IN %[1]s %[2]s\r\ns=tone\r\nc=IN %[1]s %[2]s\r\nt=0 0\r\nm=audio %[3]d RTP/AVP 0\r\na=rtpmap:0 PCMU/8000\r\n",
		family, server.Addr(), server.Port())
}
