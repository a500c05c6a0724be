// SPDX-License-Identifier: Apache-2.0

package ftp

import "bytes"

// Telnet's bytes that may stand anywhere in a control connection (RFC 959, 4.1.3; RFC 854). ABOR comes behind IAC IP IAC DM.
const (
	iac  = 255
	will = 251 // the first of the four commands with an option
	dont = 254
)

// telnet is where the stream stands in a Telnet command.
type telnet uint8

const (
	text    telnet = iota
	command        // behind IAC
	option         // behind IAC WILL, WON'T, DO or DON'T
)

// next returns the text at the beginning of b, up to the end of a line or the next Telnet command, and the rest.
func (t *telnet) next(b []byte) (chunk, rest []byte) {
	switch {
	case *t == option:
		*t = text
		return nil, b[1:]
	case *t == command && b[0] >= will && b[0] <= dont:
		*t = option
		return nil, b[1:]
	case *t == command:
		*t = text
		if b[0] == iac { // a byte of 255
			return b[:1], b[1:]
		}
		return nil, b[1:]
	}
	end := len(b)
	if n := bytes.IndexByte(b, '\n'); n >= 0 {
		end = n + 1
	}
	if n := bytes.IndexByte(b[:end], iac); n >= 0 {
		*t = command
		return b[:n], b[n+1:]
	}
	return b[:end], b[end:]
}
