// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/rehome-net/rehome/tcprepair"
)

// Bounds of what a peer may send.
const (
	// MaxFrame is the largest length field accepted, in bytes.
	MaxFrame = 1 << 20
	// ChunkSize is the most data that one frame of this package's own making carries, in bytes.
	ChunkSize = 256 << 10

	headerSize  = 4 + 1 + 8
	maxTag      = 32
	criticalBit = 0x80
	maxText     = 4096
)

// Errors of decoding. All of them mean that the peer is broken or hostile: its connection is closed.
var (
	// ErrTooLarge is a frame or value above its bound.
	ErrTooLarge = errors.New("wire: too large")
	// ErrMalformed is a frame whose bytes do not follow the grammar.
	ErrMalformed = errors.New("wire: malformed frame")
	// ErrCritical is a field this version does not know and must not skip.
	ErrCritical = errors.New("wire: unknown critical field")
	// ErrUnknownKind is a frame of a kind that this version does not know.
	ErrUnknownKind = errors.New("wire: unknown kind of frame")
)

// Frame is one message with the id of the migration or request it belongs to.
type Frame struct {
	ID      uint64
	Message Message
}

// Message is the typed content of a frame: one of the pointer types of this package.
type Message interface {
	// Kind returns the number that announces the message on the wire.
	Kind() Kind
	// code passes every field through c, which reads or writes them.
	code(c *coder)
}

// Append appends the frame in its encoded form to b.
func Append(b []byte, f Frame) ([]byte, error) {
	start := len(b)
	b = append(b, 0, 0, 0, 0, byte(f.Message.Kind()))
	b = binary.BigEndian.AppendUint64(b, f.ID)
	c := coder{encoding: true, out: b}
	f.Message.code(&c)
	if c.err != nil {
		return b[:start], fmt.Errorf("encode %v: %w", f.Message.Kind(), c.err)
	}
	size := len(c.out) - start - 4
	if size > MaxFrame {
		return b[:start], fmt.Errorf("encode %v: %w: %d bytes, at most %d", f.Message.Kind(), ErrTooLarge, size, MaxFrame)
	}
	binary.BigEndian.PutUint32(c.out[start:], uint32(size))
	return c.out, nil
}

// Decode decodes what follows a frame's length field. The message's byte slices point into body.
func Decode(body []byte) (Frame, error) {
	if len(body) < headerSize-4 {
		return Frame{}, fmt.Errorf("%w: %d bytes, want at least %d", ErrMalformed, len(body), headerSize-4)
	}
	kind := Kind(body[0])
	m := newMessage(kind)
	if m == nil {
		return Frame{}, fmt.Errorf("%w %d", ErrUnknownKind, kind)
	}
	c := coder{}
	if err := c.scan(body[headerSize-4:]); err != nil {
		return Frame{}, fmt.Errorf("decode %v: %w", kind, err)
	}
	m.code(&c)
	if err := c.finish(); err != nil {
		return Frame{}, fmt.Errorf("decode %v: %w", kind, err)
	}
	return Frame{ID: binary.BigEndian.Uint64(body[1:]), Message: m}, nil
}

// coder walks the fields of one message, writing them when encoding, else reading them from what scan found. One
// method per message serves both directions, so that they cannot drift apart.
type coder struct {
	encoding bool
	out      []byte
	values   [maxTag][]byte
	// Bit sets over the tags: found in the frame, known to the message, and free to be skipped.
	seen, known, skippable uint32
	err                    error
}

// scan splits the fields of a frame.
func (c *coder) scan(b []byte) error {
	for len(b) > 0 {
		tag := b[0]
		size, n := binary.Uvarint(b[1:])
		if n <= 0 || size > uint64(len(b)-1-n) {
			return fmt.Errorf("%w: field %d is cut off", ErrMalformed, tag)
		}
		value := b[1+n : 1+n+int(size)]
		b = b[1+n+int(size):]
		index := tag &^ criticalBit
		if index >= maxTag {
			if tag&criticalBit != 0 {
				return ErrCritical
			}
			continue
		}
		if c.seen&(1<<index) != 0 {
			return fmt.Errorf("%w: field %d stands twice", ErrMalformed, index)
		}
		c.seen |= 1 << index
		if tag&criticalBit == 0 {
			c.skippable |= 1 << index
		}
		c.values[index] = value
	}
	return nil
}

// finish returns the first error of decoding; a critical field that no one asked for is one.
func (c *coder) finish() error {
	if c.err == nil && c.seen&^c.known&^c.skippable != 0 {
		return ErrCritical
	}
	return c.err
}

// value returns the raw field when decoding; ok is false when it is absent.
func (c *coder) value(tag uint8) (v []byte, ok bool) {
	if c.seen&(1<<tag) == 0 {
		return nil, false
	}
	c.known |= 1 << tag
	return c.values[tag], true
}

func (c *coder) put(tag uint8, size int) {
	c.out = append(c.out, tag)
	c.out = binary.AppendUvarint(c.out, uint64(size))
}

func (c *coder) fail(tag uint8, format string, args ...any) {
	if c.err == nil {
		c.err = fmt.Errorf("%w: field %d: %s", ErrMalformed, tag, fmt.Sprintf(format, args...))
	}
}

func (c *coder) bytes(tag uint8, p *[]byte) {
	if c.encoding {
		if len(*p) > 0 {
			c.put(tag, len(*p))
			c.out = append(c.out, *p...)
		}
		return
	}
	if v, ok := c.value(tag); ok {
		*p = v
	}
}

func (c *coder) text(tag uint8, p *string) {
	if c.encoding {
		s := *p
		if len(s) > maxText {
			s = s[:maxText]
		}
		if s != "" {
			c.put(tag, len(s))
			c.out = append(c.out, s...)
		}
		return
	}
	if v, ok := c.value(tag); ok {
		if len(v) > maxText {
			c.fail(tag, "text of %d bytes, at most %d", len(v), maxText)
			return
		}
		*p = string(v)
	}
}

// integer codes v as the shortest big-endian string of bytes; zero is left out.
func integer[T ~uint8 | ~uint16 | ~uint32 | ~uint64 | ~int64](c *coder, tag uint8, p *T) {
	if c.encoding {
		u := uint64(*p)
		if u == 0 {
			return
		}
		var raw [8]byte
		binary.BigEndian.PutUint64(raw[:], u)
		i := 0
		for raw[i] == 0 {
			i++
		}
		c.put(tag, 8-i)
		c.out = append(c.out, raw[i:]...)
		return
	}
	v, ok := c.value(tag)
	if !ok {
		return
	}
	if len(v) > 8 {
		c.fail(tag, "integer of %d bytes", len(v))
		return
	}
	var u uint64
	for _, b := range v {
		u = u<<8 | uint64(b)
	}
	*p = T(u)
	if uint64(*p) != u {
		c.fail(tag, "integer %d is out of range", u)
	}
}

func (c *coder) flag(tag uint8, p *bool) {
	var u uint8
	if *p {
		u = 1
	}
	integer(c, tag, &u)
	if !c.encoding { // Encoding leaves the message alone: it may be on its way to several peers.
		*p = u != 0
	}
}

// span codes a duration in whole microseconds; negative ones count as zero.
func (c *coder) span(tag uint8, p *time.Duration) {
	u := uint64(max(*p, 0) / time.Microsecond)
	integer(c, tag, &u)
	if !c.encoding {
		if u > uint64(24*time.Hour/time.Microsecond) {
			c.fail(tag, "duration above a day")
			return
		}
		*p = time.Duration(u) * time.Microsecond
	}
}

func (c *coder) flow(tag uint8, p *tcprepair.Flow) {
	if c.encoding {
		if !p.IsValid() {
			return
		}
		local, remote := p.Local.Addr().AsSlice(), p.Remote.Addr().AsSlice()
		c.put(tag, 2*(len(local)+2))
		c.out = appendFlow(c.out, *p, local, remote)
		return
	}
	v, ok := c.value(tag)
	if !ok {
		return
	}
	f, err := parseFlow(v)
	if err != nil {
		c.fail(tag, "%v", err)
		return
	}
	*p = f
}

func appendFlow(b []byte, f tcprepair.Flow, local, remote []byte) []byte {
	b = append(b, local...)
	b = binary.BigEndian.AppendUint16(b, f.Local.Port())
	b = append(b, remote...)
	return binary.BigEndian.AppendUint16(b, f.Remote.Port())
}

func parseFlow(v []byte) (tcprepair.Flow, error) {
	if len(v) != 12 && len(v) != 36 {
		return tcprepair.Flow{}, fmt.Errorf("flow of %d bytes, want 12 or 36", len(v))
	}
	half := len(v) / 2
	f := tcprepair.Flow{Local: parseAddrPort(v[:half]), Remote: parseAddrPort(v[half:])}
	if !f.IsValid() {
		return tcprepair.Flow{}, fmt.Errorf("flow %v is not valid", f)
	}
	return f, nil
}

func parseAddrPort(v []byte) netip.AddrPort {
	addr, _ := netip.AddrFromSlice(v[:len(v)-2])
	return netip.AddrPortFrom(addr, binary.BigEndian.Uint16(v[len(v)-2:]))
}

// list codes a list of byte strings, each preceded by its length in 4 bytes.
func (c *coder) list(tag uint8, p *[][]byte) {
	if c.encoding {
		if len(*p) == 0 {
			return
		}
		size := 0
		for _, e := range *p {
			size += 4 + len(e)
		}
		c.put(tag, size)
		for _, e := range *p {
			c.out = binary.BigEndian.AppendUint32(c.out, uint32(len(e)))
			c.out = append(c.out, e...)
		}
		return
	}
	v, ok := c.value(tag)
	if !ok {
		return
	}
	for len(v) > 0 {
		if len(v) < 4 {
			c.fail(tag, "list is cut off")
			return
		}
		n := binary.BigEndian.Uint32(v)
		if uint64(n) > uint64(len(v)-4) {
			c.fail(tag, "list is cut off")
			return
		}
		*p = append(*p, v[4:4+n:4+n])
		v = v[4+n:]
	}
}
