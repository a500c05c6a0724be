// SPDX-License-Identifier: Apache-2.0

package streamer

import (
	"errors"
	"fmt"
)

// Signalling is what a server's connections speak. It is the name of the service, too.
type Signalling string

// Kinds of Signalling.
const (
	RTSP Signalling = "rtsp" // RTSP 1.0 (RFC 2326)
	SIP  Signalling = "sip"  // SIP over TCP (RFC 3261)
)

func (s Signalling) validate() error {
	if s != RTSP && s != SIP {
		return fmt.Errorf("streamer: signalling %q: want %s or %s", s, RTSP, SIP)
	}
	return nil
}

// maxRequest bounds a request, in bytes, and a reply.
const maxRequest = 64 << 10

// errIncomplete means that a request has not come as a whole.
var errIncomplete = errors.New("the request is not complete")

// trim leaves out the empty lines before a request, which keep connections alive. What follows must not be too long.
func trim(input []byte) ([]byte, error) {
	for len(input) > 0 && (input[0] == '\r' || input[0] == '\n') {
		input = input[1:]
	}
	if len(input) > maxRequest {
		return nil, fmt.Errorf("a request exceeds %d bytes", maxRequest)
	}
	return input, nil
}

// converse takes a request off the bytes that have come, and answers it. The reply is empty where there is none. s.mu is held.
func (s *session) converse(input []byte) (reply, rest []byte, err error) {
	if s.calls {
		return s.call(input)
	}
	r, rest, err := nextRequest(input)
	if err != nil {
		return nil, rest, err
	}
	reply, err = s.answer(r).Marshal()
	return reply, rest, err
}
