// SPDX-License-Identifier: Apache-2.0

package ftp

import (
	"bytes"

	"github.com/rehome-net/rehome/dispatcher/session/inspect"
)

// readCommand reads a line of the client's.
func readCommand(line inspect.Line) (inspect.Half, verdict) {
	name, argument, _ := bytes.Cut(bytes.TrimSpace(line.Text), []byte(" "))
	argument = bytes.TrimSpace(argument)
	switch {
	case len(name) < 3 || len(name) > 4:
		return inspect.Half{}, malformed
	case line.Cut:
		return inspect.Half{}, understood // a path; no command that matters is so long
	}
	var h inspect.Half
	switch string(bytes.ToUpper(name)) {
	case "PORT":
		return port(parsePort(argument))
	case "EPRT":
		return port(parseExtended(argument))
	case "PASV":
		h.Method = inspect.Passive
	case "EPSV":
		h.Method = inspect.Passive
		if bytes.EqualFold(argument, []byte("ALL")) {
			h.Method = inspect.PassiveAll
		}
	case "ABOR":
		h.Method = inspect.Abort
	case "QUIT":
		h.Method = inspect.Quit
	default:
		return inspect.Half{}, understood
	}
	return h, isHalf
}

func port(s inspect.Stream, ok bool) (inspect.Half, verdict) {
	if !ok {
		return inspect.Half{}, malformed
	}
	return inspect.Half{Method: inspect.Port, Streams: []inspect.Stream{s}}, isHalf
}

// Reply codes that matter (RFC 959, 4.2.2; RFC 2428, 3).
const (
	replyClosing         = 221 // of QUIT
	replyNoTransfer      = 225 // of ABOR
	replyTransferDone    = 226 // of ABOR, or of a transfer
	replyPassive         = 227
	replyExtendedPassive = 229
	replyGone            = 421 // the server closes the control connection
)

// replyCode reads the beginning of a reply's line; last tells whether the reply ends with it.
func replyCode(b []byte) (code uint16, last, ok bool) {
	if len(b) < 3 {
		return 0, false, false
	}
	n, ok := inspect.Number(b[:3], 699)
	if !ok || n < 100 {
		return 0, false, false
	}
	switch {
	case len(b) == 3 || b[3] == ' ':
		return uint16(n), true, true
	case b[3] == '-':
		return uint16(n), false, true
	}
	return 0, false, false
}

// readReply reads a whole reply, or its last line.
func readReply(code uint16, line inspect.Line) (inspect.Half, verdict) {
	h := inspect.Half{Status: code}
	var s inspect.Stream
	var ok bool
	switch code {
	case replyPassive:
		s, ok = parsePassive(line.Text[3:])
	case replyExtendedPassive:
		s, ok = parseExtendedPassive(line.Text[3:])
	case replyClosing, replyNoTransfer, replyTransferDone, replyGone:
		return h, isHalf
	default:
		return h, understood
	}
	if !ok || line.Cut {
		return h, malformed
	}
	h.Streams = []inspect.Stream{s}
	return h, isHalf
}
