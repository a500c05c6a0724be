// SPDX-License-Identifier: Apache-2.0

package tcprepair

import "fmt"

// Outline is the part of a snapshot that traffic does not change: addresses and socket options. It is there to make the freeze
// short: the source reads it before it freezes (ReadOutline, then Outline.Take), and sends it ahead, so that the target has a
// socket waiting (Reserve). Between ReadOutline and Freeze the application must not change options.
type Outline struct {
	Flow Flow
	// Mapped is as in Snapshot.
	Mapped bool
	// Options lack the sizes and rates that change with the traffic: SendBuffer, ReceiveBuffer, WindowClamp, MaxPacingRate.
	Options Options
	// plain is true when the socket was seen to have no upper layer protocol.
	plain bool
}

func (o *Outline) validate() error {
	if !o.Flow.IsValid() || o.Mapped && !o.Flow.Local.Addr().Is4() {
		return fmt.Errorf("%w: addresses %s, mapped is %t", ErrCorrupt, o.Flow, o.Mapped)
	}
	return o.Options.validate()
}

// AppendBinary appends the encoded outline to b and returns the extended slice. It implements encoding.BinaryAppender.
func (o *Outline) AppendBinary(b []byte) ([]byte, error) {
	if err := o.validate(); err != nil {
		return b, &OpError{Op: "encode outline", Flow: o.Flow, Err: err}
	}
	return appendFrame(b, magicOutline, func(b []byte) []byte {
		b = appendSection(b, kindOptions, o.Options.append)
		b = appendBytes(b, kindDevice, []byte(o.Options.Device))
		b = appendSection(b, kindFlow, func(b []byte) []byte {
			if o.Mapped {
				return o.Flow.append(append(b, flagMapped))
			}
			return o.Flow.append(append(b, 0))
		})
		return appendBytes(b, kindCongestion, []byte(o.Options.Congestion))
	}), nil
}

// DecodeOutline reads one encoded outline, which must be all of b, as Decode does with snapshots.
func DecodeOutline(b []byte) (*Outline, error) {
	body, err := openFrame(b, magicOutline, fixedBytes)
	o := &Outline{}
	if err == nil {
		err = eachSection(body, o.decodeSection, kindOptions, kindFlow)
	}
	if err == nil {
		err = o.validate()
	}
	if err != nil {
		return nil, &OpError{Op: "decode outline", Err: err}
	}
	return o, nil
}

func (o *Outline) decodeSection(kind uint16, b []byte) error {
	if kind == kindFlow {
		if len(b) < 1 || b[0]&^flagMapped != 0 || !o.Flow.decode(b[1:]) {
			return fmt.Errorf("%w: section %d of %d bytes", ErrCorrupt, kind, len(b))
		}
		o.Mapped = b[0] != 0
		return nil
	}
	if kind < optionalFrom && kind != kindOptions && kind != kindDevice {
		return fmt.Errorf("%w: section %d has no place in an outline", ErrVersion, kind)
	}
	// What both have is read alike.
	s := &Snapshot{Options: o.Options}
	err := s.decodeSection(kind, b)
	o.Options = s.Options
	o.Options.MaxPacingRate = 0
	return err
}
