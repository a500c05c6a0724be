// SPDX-License-Identifier: Apache-2.0

package peek

import (
	"strconv"
	"time"
)

// Status says why a connection is refused, as the client is told.
type Status uint8

// What each means in HTTP, and as a TLS alert (RFC 8446, 6.2).
const (
	Malformed    Status = iota // 400, decode_error
	HeadTooLarge               // 431, decode_error
	TimedOut                   // 408, user_canceled. To be sent only when something came: an idle connection is just closed
	NoRoute                    // 404, unrecognized_name
	NoProtocol                 // 421, no_application_protocol: the ALPN list fits no route
	Unavailable                // 503, internal_error: no backend took the connection
)

// TLS alerts that crypto/tls does not export.
const (
	alertUnexpectedMessage = 10
	alertDecodeError       = 50
	alertProtocolVersion   = 70
	alertInternalError     = 80
	alertUserCanceled      = 90
	alertUnrecognizedName  = 112
	alertNoProtocol        = 120
)

// Answer returns what to write to a client of a service of mode m before closing the connection. It is empty where nothing
// can be said: for TCP, a RST is the answer (SO_LINGER 0). The caller sends it without waiting, and should close
// so that unread bytes do not turn it into a RST: shutdown(SHUT_WR), then discard for a moment.
func (s Status) Answer(m Mode) []byte {
	switch m {
	case HTTP:
		return []byte("HTTP/1.1 " + s.line() + "\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
	case TLS:
		return alert(s.alert())
	case HTTP2:
		code := uint32(errorProtocol)
		if s == TimedOut || s == NoRoute || s == Unavailable {
			code = errorNone
		}
		return goAway(appendFrame(nil, frameSettings, 0, 0, nil), 0, code)
	}
	return nil
}

// Answer returns what to write to the client that sent k: of an HTTP/2 request it is a response, so that the client does
// not ask again elsewhere, else as Status.Answer has it.
func (k *Key) Answer(s Status) []byte {
	if k.Mode != HTTP2 || k.stream == 0 {
		return s.Answer(k.Mode)
	}
	b := appendFrame(nil, frameSettings, 0, 0, nil)
	b = appendFrame(b, frameSettings, flagAck, 0, nil)
	// :status as a literal without indexing, its name from the static table (RFC 7541, 6.2.2).
	status := append([]byte{0x08, 3}, s.line()[:3]...)
	b = appendFrame(b, frameHeaders, flagEndHeaders|flagEndStream, k.stream, status)
	return goAway(b, k.stream, errorNone)
}

// AnswerLater is Answer for a client that may come back after a time: of HTTP/1 it is told when (RFC 9110, 10.2.3), in whole seconds.
func (k *Key) AnswerLater(after time.Duration) []byte {
	if k.Mode != HTTP || after <= 0 {
		return k.Answer(Unavailable)
	}
	seconds := int64((after + time.Second - 1) / time.Second)
	return []byte("HTTP/1.1 " + Unavailable.line() + "\r\nRetry-After: " + strconv.FormatInt(seconds, 10) + "\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
}

// Answer returns what to write to the client that was rejected. One that speaks another protocol is answered in its own.
func (e *RejectError) Answer() []byte {
	switch e.Reason {
	case SpeaksTLS:
		return alert(alertUnexpectedMessage)
	case SpeaksSSL2:
		return alert(alertProtocolVersion)
	case SpeaksHTTP:
		return Malformed.Answer(HTTP)
	case SpeaksHTTP2:
		return Malformed.Answer(HTTP2)
	case ProxyMissing, ProxyMalformed, SpeaksProxy, NotTLS, PrefaceMalformed:
		return nil
	case TooLarge, TooManyFields:
		return HeadTooLarge.Answer(e.Mode)
	case NameMalformed:
		return NoRoute.Answer(e.Mode)
	}
	return Malformed.Answer(e.Mode)
}

func (s Status) line() string {
	switch s {
	case HeadTooLarge:
		return "431 Request Header Fields Too Large"
	case TimedOut:
		return "408 Request Timeout"
	case NoRoute:
		return "404 Not Found"
	case NoProtocol:
		return "421 Misdirected Request"
	case Unavailable:
		return "503 Service Unavailable"
	}
	return "400 Bad Request"
}

func (s Status) alert() byte {
	switch s {
	case TimedOut:
		return alertUserCanceled
	case NoRoute:
		return alertUnrecognizedName
	case NoProtocol:
		return alertNoProtocol
	case Unavailable:
		return alertInternalError
	}
	return alertDecodeError
}

// String returns the status as HTTP has it, or its number.
func (s Status) String() string {
	if s > Unavailable {
		return "status " + strconv.Itoa(int(s))
	}
	return s.line()
}

// alert makes a record with a fatal alert; its version is one that every client takes.
func alert(description byte) []byte {
	const recordAlert, fatal = 21, 2
	return []byte{recordAlert, versionTLS10 >> 8, versionTLS10 & 0xff, 0, 2, fatal, description}
}

func goAway(b []byte, last uint32, code uint32) []byte {
	return appendFrame(b, frameGoAway, 0, 0, []byte{
		byte(last >> 24), byte(last >> 16), byte(last >> 8), byte(last),
		byte(code >> 24), byte(code >> 16), byte(code >> 8), byte(code),
	})
}
