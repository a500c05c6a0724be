// SPDX-License-Identifier: Apache-2.0

package peek

const (
	recordHeader    = 5       // type, version, length (RFC 8446, 5.1)
	recordHandshake = 22      // the first byte of a TLS connection
	maxRecord       = 1 << 14 // of plain text
	messageHeader   = 4       // type, length
	messageHello    = 1
)

// tls reads the records that carry the ClientHello. It is one handshake message, which may be cut anywhere.
func (p *Parser) tls(g *Progress, b []byte, k *Key) Reason {
	if g.stage == stageBegin {
		if r := beginTLS(b[g.off:]); r != accepted {
			return r
		}
		g.start = g.off
		g.stage = stageRecords
	}
	for {
		record, r := p.record(g, b)
		if r != accepted {
			return r
		}
		if r := p.openMessage(g, record); r != accepted {
			return r
		}
		length := g.messageLength()
		if g.opened == messageHeader && int(g.got)+len(record) >= length {
			k.Len = int(g.off) + recordHeader + len(record)
			return parseHello(g.hello(b[:k.Len], length), p.cfg.Limits.Fields, k)
		}
		g.got += int32(len(record))
		g.off += int32(recordHeader + len(record))
	}
}

// beginTLS tells what else clients send to a TLS port.
func beginTLS(b []byte) Reason {
	switch {
	case len(b) == 0:
		return incomplete
	case b[0] == recordHandshake:
		return accepted
	case 'A' <= b[0] && b[0] <= 'Z':
		return SpeaksHTTP
	case b[0]&0x80 == 0:
		return NotTLS
	case len(b) < 3:
		return incomplete
	case b[2] == messageHello:
		return SpeaksSSL2
	}
	return NotTLS
}

// record returns the content of the record at g.off, once all of it is there.
func (p *Parser) record(g *Progress, b []byte) ([]byte, Reason) {
	b = b[g.off:]
	if len(b) < recordHeader {
		g.need = g.off + recordHeader
		return nil, incomplete
	}
	length := int(b[3])<<8 | int(b[4])
	switch {
	case b[0] != recordHandshake || b[1] != 3 || length == 0 || length > maxRecord:
		return nil, RecordMalformed
	case int(g.off)+recordHeader+length > p.cfg.Limits.Bytes:
		return nil, TooLarge
	case len(b) < recordHeader+length:
		g.need = g.off + recordHeader + int32(length)
		return nil, incomplete
	}
	return b[recordHeader : recordHeader+length], accepted
}

// openMessage collects the handshake message's header from the record that is read.
func (p *Parser) openMessage(g *Progress, record []byte) Reason {
	if g.got >= messageHeader {
		return accepted
	}
	g.opened = uint8(int(g.got) + copy(g.message[g.got:], record))
	switch {
	case g.message[0] != messageHello:
		return HelloMalformed
	case g.opened == messageHeader && int(g.start)+recordHeader+g.messageLength() > p.cfg.Limits.Bytes:
		return TooLarge
	}
	return accepted
}

// messageLength is the length of the handshake message with its header.
func (g *Progress) messageLength() int {
	return messageHeader + (int(g.message[1])<<16 | int(g.message[2])<<8 | int(g.message[3]))
}

// hello returns the handshake message in the records b[g.start:], which are complete. Only one that is cut is copied.
func (g *Progress) hello(b []byte, length int) []byte {
	if g.got == 0 {
		return b[g.start+recordHeader:][:length]
	}
	whole := make([]byte, 0, len(b))
	for at := int(g.start); at+recordHeader <= len(b); {
		end := min(at+recordHeader+int(b[at+3])<<8+int(b[at+4]), len(b))
		whole = append(whole, b[at+recordHeader:end]...)
		at = end
	}
	return whole[:min(length, len(whole))]
}
