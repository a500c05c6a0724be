// SPDX-License-Identifier: Apache-2.0

package streamer

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
)

// caller makes the requests of one call.
type caller struct {
	call string
	port uint16
	seq  int
	tag  string // of the called side, when it is known
}

func (c *caller) request(method string) []byte {
	body := ""
	if method == "INVITE" {
		body = fmt.Sprintf("v=0\r\no=c 1 1 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=audio %d RTP/AVP 0 8\r\n", c.port)
	}
	if method != "ACK" {
		c.seq++
	}
	to := "<sip:service@127.0.0.1>"
	if c.tag != "" {
		to += ";tag=" + c.tag
	}
	return fmt.Appendf(nil, "%[1]s sip:service@127.0.0.1 SIP/2.0\r\nVia: SIP/2.0/TCP 127.0.0.1:10000;branch=z9hG4bK-%[2]d\r\nFrom: <sip:c@127.0.0.1>;tag=1\r\nTo: %[3]s\r\n"+
		"Call-ID: %[4]s\r\nCSeq: %[2]d %[1]s\r\nContent-Length: %[5]d\r\n\r\n%[6]s", method, c.seq, to, c.call, len(body), body)
}

// called is a session that speaks SIP, with no connection.
func called(t *testing.T) *session {
	t.Helper()
	local := netip.MustParseAddr("127.0.0.1")
	from := freePorts(t, local)
	s := &session{
		line: &fakeLine{}, dial: Dial, log: slog.New(slog.DiscardHandler), calls: true, local: local, remote: local, signalPort: 5060,
		port: func() uint16 { return from.Port() }, ending: func() bool { return false },
	}
	t.Cleanup(s.close)
	return s
}

// say has a session answer, and returns the status line.
func say(t *testing.T, s *session, request []byte) (status, all string) {
	t.Helper()
	reply, rest, err := s.converse(request)
	if err != nil || len(rest) != 0 {
		t.Fatalf("%.40q: %d bytes are left, %v", request, len(rest), err)
	}
	status, _, _ = strings.Cut(string(reply), "\r\n")
	return status, string(reply)
}

// TestCall goes through a call: offer and answer, media from the ACK on, a second INVITE in the dialog, INFO, BYE.
func TestCall(t *testing.T) {
	s := called(t)
	c := &caller{call: "a@b", port: newClient(t).at.Port()}
	status, all := say(t, s, c.request("INVITE"))
	if want := fmt.Sprintf("m=audio %d RTP/AVP 0", s.rec.Server.Port()); status != "SIP/2.0 200 OK" || !strings.Contains(all, want) || s.rec.Mode != idle {
		t.Fatalf("%s in mode %q, want %q in it", all, s.rec.Mode, want)
	}
	if s.rec.Client.Port() != c.port {
		t.Errorf("media go to %v, want port %d", s.rec.Client, c.port)
	}
	c.tag = s.rec.Session
	if !strings.Contains(all, ";tag="+c.tag) || !strings.Contains(all, "Content-Length: ") {
		t.Errorf("no tag %s, or no length: %s", c.tag, all)
	}
	other := &caller{call: "c@d", port: c.port}
	for _, tt := range []struct {
		request []byte
		status  string
		mode    mode
	}{
		{other.request("ACK"), "", idle},
		{c.request("ACK"), "", playing},
		{c.request("INVITE"), "SIP/2.0 200 OK", playing},
		{c.request("ACK"), "", playing},
		{c.request("INFO"), "SIP/2.0 200 OK", playing},
		{c.request("OPTIONS"), "SIP/2.0 200 OK", playing},
		{c.request("MESSAGE"), "SIP/2.0 501 Not Implemented", playing},
		{other.request("INVITE"), "SIP/2.0 486 Busy Here", playing},
		{other.request("BYE"), "SIP/2.0 481 Call/Transaction Does Not Exist", playing},
		{c.request("BYE"), "SIP/2.0 200 OK", idle},
	} {
		if status, all := say(t, s, tt.request); status != tt.status || s.rec.Mode != tt.mode {
			t.Errorf("%.20q: %s in mode %q, want %q, %q", tt.request, all, s.rec.Mode, tt.status, tt.mode)
		}
	}
}

// TestHangUp holds how callers hear that they are to end their calls.
func TestHangUp(t *testing.T) {
	s := called(t)
	s.ending = func() bool { return true }
	c := &caller{call: "a@b", port: newClient(t).at.Port()}
	say(t, s, c.request("INVITE"))
	if status, _ := say(t, s, c.request("INFO")); status != "SIP/2.0 480 Temporarily Unavailable" {
		t.Error(status)
	}
}

// TestNextCall cuts requests at every byte, and reads two at once.
func TestNextCall(t *testing.T) {
	c := &caller{call: "a@b", port: 6000}
	one, two := c.request("INVITE"), c.request("BYE")
	for n := range one {
		if _, _, err := nextCall(one[:n]); !errors.Is(err, errIncomplete) {
			t.Fatalf("after %d bytes: %v", n, err)
		}
	}
	r, rest, err := nextCall(append(append([]byte("\r\n\r\n"), one...), two...))
	if err != nil || !r.IsInvite() || string(rest) != string(two) {
		t.Errorf("%v, %q are left, %v", r, rest, err)
	}
	for name, bad := range map[string]string{
		"a response":     "SIP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
		"without length": "BYE sip:a SIP/2.0\r\nCall-ID: x\r\n\r\n",
		"no SIP":         "GET / HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
		"without a call": "BYE sip:a@b SIP/2.0\r\nContent-Length: 0\r\n\r\n",
		"too long":       strings.Repeat("x", maxRequest+1),
	} {
		if _, _, err := nextCall([]byte(bad)); err == nil || errors.Is(err, errIncomplete) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestOffered(t *testing.T) {
	const head = "v=0\r\no=c 1 1 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n"
	for text, want := range map[string]uint16{
		head + "m=audio 6000 RTP/AVP 8 0\r\n":                          6000,
		head + "m=audio 6001 RTP/AVP 0\r\n":                            0,
		head + "m=audio 0 RTP/AVP 0\r\n":                               0,
		head + "m=video 6000 RTP/AVP 0\r\n":                            0,
		head + "m=audio 6000 RTP/AVP 96\r\n":                           0,
		head + "m=audio 6000 RTP/AVP 0\r\nm=video 6002 RTP/AVP 96\r\n": 0,
		head: 0,
		"":   0,
	} {
		if got, err := offered([]byte(text)); got != want || (err == nil) != (want != 0) {
			t.Errorf("%q: port %d, %v; want %d", text, got, err, want)
		}
	}
}
