// SPDX-License-Identifier: Apache-2.0

package streamer

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"

	"github.com/bluenviron/gortsplib/v4/pkg/base"
	"github.com/bluenviron/gortsplib/v4/pkg/headers"
)

// nextRequest takes a request off the bytes that have come.
func nextRequest(input []byte) (_ *base.Request, rest []byte, err error) {
	if input, err = trim(input); err != nil {
		return nil, nil, err
	}
	if !bytes.Contains(input, []byte("\r\n\r\n")) {
		return nil, input, errIncomplete
	}
	in := bytes.NewReader(input)
	br := bufio.NewReaderSize(in, maxRequest)
	r := &base.Request{}
	switch err := r.Unmarshal(br); {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF): // its body
		return nil, input, errIncomplete
	case err != nil:
		return nil, nil, err
	}
	return r, input[len(input)-in.Len()-br.Buffered():], nil
}

// describe returns what DESCRIBE asks for (RFC 8866).
func describe(server netip.Addr) []byte {
	family := "IP4"
	if server.Is6() {
		family = "IP6"
	}
	return fmt.Appendf(nil, "v=0\r\no=- 0 0 IN %s %s\r\ns=tone\r\nc=IN %s %s\r\nt=0 0\r\nm=audio 0 RTP/AVP 0\r\na=rtpmap:0 PCMU/8000\r\na=control:track\r\n",
		family, server, family, server)
}

// answer decides on a request. s.mu is held.
func (s *session) answer(r *base.Request) *base.Response {
	w := &base.Response{StatusCode: base.StatusOK, Header: base.Header{"CSeq": r.Header["CSeq"]}}
	if s.rec.Session != "" {
		w.Header["Session"] = base.HeaderValue{s.rec.Session + ";timeout=60"}
	}
	fail := func(code base.StatusCode) *base.Response {
		w.StatusCode = code
		return w
	}
	switch r.Method {
	case base.Options:
		w.Header["Public"] = base.HeaderValue{"OPTIONS, DESCRIBE, ANNOUNCE, SETUP, PLAY, RECORD, PAUSE, TEARDOWN, GET_PARAMETER"}
	case base.Describe:
		w.Header["Content-Type"] = base.HeaderValue{"application/sdp"}
		w.Header["Content-Base"] = base.HeaderValue{r.URL.String() + "/"}
		w.Body = describe(s.local)
	case base.Announce, base.GetParameter, base.SetParameter:
	case base.Setup:
		return s.setUp(r, w)
	case base.Play, base.Record:
		if !s.rec.media() || s.rec.Mode != idle {
			return fail(base.StatusMethodNotValidInThisState)
		}
		s.rec.Mode = playing
		if r.Method == base.Record {
			s.rec.Mode = recording
		}
		s.rec.Sent.begin()
	case base.Pause:
		s.rec.Mode = idle
	case base.Teardown:
		s.rec.Mode, s.rec.Last = idle, true
	default:
		return fail(base.StatusNotImplemented)
	}
	return w
}

// setUp answers SETUP, and opens the sockets. s.mu is held.
func (s *session) setUp(r *base.Request, w *base.Response) *base.Response {
	fail := func(code base.StatusCode) *base.Response {
		w.StatusCode = code
		return w
	}
	var t headers.Transport
	if err := t.Unmarshal(r.Header["Transport"]); err != nil || t.Protocol != headers.TransportProtocolUDP || t.ClientPorts == nil || t.Delivery != nil && *t.Delivery == headers.TransportDeliveryMulticast {
		return fail(base.StatusUnsupportedTransport)
	}
	port := t.ClientPorts[0]
	if port <= 0 || port > 65534 || port%2 != 0 {
		return fail(base.StatusUnsupportedTransport)
	}
	if s.rec.media() {
		return fail(base.StatusMethodNotValidInThisState)
	}
	client := netip.AddrPortFrom(s.remote, uint16(port))
	server := netip.AddrPortFrom(s.local, s.port())
	if err := s.open(client, server); err != nil {
		s.log.Warn("sockets", "client", client, "error", err)
		return fail(base.StatusInternalServerError)
	}
	s.rec.Client, s.rec.Server = client, server
	s.rec.Session, s.rec.Sent = newSession()
	t.ServerPorts = &[2]int{int(server.Port()), int(server.Port()) + 1}
	t.SSRC = nil
	w.Header["Session"] = base.HeaderValue{s.rec.Session + ";timeout=60"}
	w.Header["Transport"] = t.Marshal()
	return w
}
