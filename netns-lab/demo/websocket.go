// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"crypto/sha1" //nolint:gosec // RFC 6455, 4.2.2 asks for it
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"net/http"
	"strings"
)

const (
	// webSocketService is what a connection of FilesService becomes when its client asks for a WebSocket.
	webSocketService = "websocket"
	// webSocketGUID is RFC 6455's, 1.3.
	webSocketGUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
	// maxMessage bounds a frame's payload, in bytes.
	maxMessage = 64 << 10

	opClose = 8
	opPing  = 9
	opPong  = 10
)

// upgrade answers the handshake of RFC 6455, 4.2. It reports whether req was one. s.mu is held.
func (s *session) upgrade(req *http.Request) bool {
	key := req.Header.Get("Sec-WebSocket-Key")
	if key == "" || !strings.EqualFold(req.Header.Get("Upgrade"), "websocket") {
		return false
	}
	sum := sha1.Sum([]byte(key + webSocketGUID)) //nolint:gosec // see above
	s.rec.Service = webSocketService
	s.reply(fmt.Appendf(nil, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\n",
		base64.StdEncoding.EncodeToString(sum[:])))
	return true
}

// webSocket reads frames and sends each one's payload back. What has come of a frame stands in the record, like
// the head of a request.
func (s *session) webSocket(buf []byte) error {
	if frame, rest, ok, err := parseFrame(s.rec.Head); err != nil {
		return err
	} else if ok {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.rec.Head = rest
		s.reply(frame.answer())
		s.rec.Reply.Last = frame.op == opClose
		return nil
	}
	return s.read(buf, func(b []byte) error {
		s.rec.Head = append(s.rec.Head, b...)
		return nil
	})
}

// frame is a WebSocket frame of a client, unmasked.
type frame struct {
	fin     byte
	op      byte
	payload []byte
}

// parseFrame splits a client's frame from what follows it (RFC 6455, 5.2); ok is false when it is not whole yet.
func parseFrame(b []byte) (f frame, rest []byte, ok bool, err error) {
	if len(b) < 2 {
		return f, b, false, nil
	}
	if b[1]&0x80 == 0 {
		return f, b, false, errors.New("websocket: a client's frame without a mask")
	}
	f.fin, f.op = b[0]&0x80, b[0]&0x0f
	n, at := uint64(b[1]&0x7f), 2
	switch n {
	case 126:
		if len(b) < 4 {
			return f, b, false, nil
		}
		n, at = uint64(binary.BigEndian.Uint16(b[2:])), 4
	case 127:
		if len(b) < 10 {
			return f, b, false, nil
		}
		n, at = binary.BigEndian.Uint64(b[2:]), 10
	}
	if n > maxMessage {
		return f, b, false, fmt.Errorf("websocket: a frame of %d bytes, at most %d", n, maxMessage)
	}
	end := at + 4 + int(n)
	if len(b) < end {
		return f, b, false, nil
	}
	mask := b[at : at+4]
	f.payload = make([]byte, n)
	for i := range f.payload {
		f.payload[i] = b[at+4+i] ^ mask[i%4]
	}
	return f, b[end:], true, nil
}

// answer returns the frame that goes back: the same, but a pong for a ping.
func (f frame) answer() []byte {
	op := f.op
	if op == opPing {
		op = opPong
	}
	b := []byte{f.fin | op}
	switch n := len(f.payload); {
	case n < 126:
		b = append(b, byte(n))
	case n < 1<<16:
		b = binary.BigEndian.AppendUint16(append(b, 126), uint16(n))
	default:
		b = binary.BigEndian.AppendUint64(append(b, 127), uint64(n))
	}
	return append(b, f.payload...)
}
