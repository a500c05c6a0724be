// SPDX-License-Identifier: Apache-2.0

package peek

// preface is how an HTTP/2 connection begins (RFC 9113, 3.4).
const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// http2 reads the preface and frames up to the end of the first request's fields.
func (p *Parser) http2(g *Progress, b []byte, k *Key) Reason {
	if g.stage == stageBegin {
		if r := beginHTTP2(b[g.off:]); r != accepted {
			return r
		}
		g.off += int32(len(preface))
		g.stage = stageSettings
	}
	g.scan = int32(len(b))
	for {
		rest := b[g.off:]
		if len(rest) < frameHeader {
			g.need = g.off + frameHeader
			return incomplete
		}
		f := parseFrame(rest)
		if !g.allows(f, b) {
			return FrameMalformed
		}
		end := g.off + frameHeader + int32(f.length)
		if int(end) > p.cfg.Limits.Bytes {
			return TooLarge
		}
		if int(end) > len(b) {
			g.need = end
			return incomplete
		}
		opens := f.kind == frameHeaders || f.kind == frameContinuation
		if opens && f.has(flagEndHeaders) {
			k.Len, k.stream = int(end), f.stream
			return p.block(g, b[:end], k)
		}
		switch {
		case f.kind == frameHeaders:
			g.start, g.stage = g.off, stageBlock
		case g.stage == stageSettings:
			g.stage = stageFrames
		}
		g.off = end
	}
}

// beginHTTP2 compares with the preface (RFC 9113, 3.4).
func beginHTTP2(b []byte) Reason {
	for i := range min(len(b), len(preface)) {
		switch {
		case b[i] == preface[i]:
		case i == 0 && b[0] == recordHandshake:
			return SpeaksTLS
		case i < len("PRI * HTTP/2.0") && isToken(b[0]):
			return SpeaksHTTP
		default:
			return PrefaceMalformed
		}
	}
	if len(b) < len(preface) {
		return incomplete
	}
	return accepted
}

// allows reports whether f may stand at g.off: what a client may send before its first request (RFC 9113, 6), with
// the length and stream that it must have.
func (g *Progress) allows(f frame, b []byte) bool {
	if f.length > maxFrame {
		return false
	}
	switch g.stage {
	case stageSettings:
		if f.kind != frameSettings || f.has(flagAck) {
			return false
		}
	case stageBlock:
		return f.kind == frameContinuation && f.stream == parseFrame(b[g.start:]).stream
	}
	switch f.kind {
	case frameSettings:
		ack := f.has(flagAck)
		return f.stream == 0 && f.length%6 == 0 && (!ack || f.length == 0)
	case framePing:
		return f.stream == 0 && f.length == 8
	case frameWindowUpdate:
		return f.stream == 0 && f.length == 4
	case framePriority:
		return f.stream != 0 && f.length == 5
	case frameHeaders:
		return f.stream%2 == 1
	case frameData, frameReset, framePushPromise, frameGoAway, frameContinuation:
		return false
	}
	return true // an extension's frame is to be ignored (RFC 9113, 5.5)
}
