// SPDX-License-Identifier: Apache-2.0

package peek

// HTTP/2 frames (RFC 9113, 4.1 and 6): types, flags, error codes.
const (
	frameData         = 0x0
	frameHeaders      = 0x1
	framePriority     = 0x2
	frameReset        = 0x3
	frameSettings     = 0x4
	framePushPromise  = 0x5
	framePing         = 0x6
	frameGoAway       = 0x7
	frameWindowUpdate = 0x8
	frameContinuation = 0x9

	flagAck        = 0x01
	flagEndStream  = 0x01
	flagEndHeaders = 0x04
	flagPadded     = 0x08
	flagPriority   = 0x20

	errorNone     = 0x0
	errorProtocol = 0x1

	frameHeader = 9
	// maxFrame is the size that every endpoint takes; the client cannot know of a larger one yet (RFC 9113, 4.2).
	maxFrame = 1 << 14
)

// frame is a frame's header.
type frame struct {
	length      int
	kind, flags byte
	stream      uint32
}

// parseFrame reads the first frameHeader bytes of b.
func parseFrame(b []byte) frame {
	return frame{
		length: int(b[0])<<16 | int(b[1])<<8 | int(b[2]),
		kind:   b[3],
		flags:  b[4],
		stream: (uint32(b[5])<<24 | uint32(b[6])<<16 | uint32(b[7])<<8 | uint32(b[8])) &^ (1 << 31),
	}
}

func (f frame) has(flag byte) bool { return f.flags&flag != 0 }

// appendFrame appends a frame whose content is shorter than 256 bytes.
func appendFrame(b []byte, kind, flags byte, stream uint32, content []byte) []byte {
	b = append(b, 0, 0, byte(len(content)), kind, flags)
	b = append(b, byte(stream>>24), byte(stream>>16), byte(stream>>8), byte(stream))
	return append(b, content...)
}
