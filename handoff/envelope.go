// SPDX-License-Identifier: Apache-2.0

package handoff

import (
	"encoding/binary"
	"fmt"
)

// envelopeVersion is the first byte of a State on the wire. A reader refuses what it does not know.
const envelopeVersion = 1

// envelope is a State as it travels: the Exporter's data behind the connection's counts, which thus go on at the target.
//
//	state = version(1) read(uvarint) written(uvarint) data
//
// An empty State is valid: nobody has served the connection yet, as when a dispatcher hands it over.
type envelope struct {
	read, written uint64
	data          []byte
}

func (e envelope) append(b []byte) []byte {
	b = append(b, envelopeVersion)
	b = binary.AppendUvarint(b, e.read)
	b = binary.AppendUvarint(b, e.written)
	return append(b, e.data...)
}

// parseEnvelope decodes b; data points into it. Errors match ErrState.
func parseEnvelope(b []byte) (envelope, error) {
	if len(b) == 0 {
		return envelope{}, nil
	}
	if b[0] != envelopeVersion {
		return envelope{}, fmt.Errorf("%w: version %d, this side knows %d: upgrade the older server", ErrState, b[0], envelopeVersion)
	}
	var e envelope
	rest := b[1:]
	for _, p := range []*uint64{&e.read, &e.written} {
		v, n := binary.Uvarint(rest)
		if n <= 0 {
			return envelope{}, fmt.Errorf("%w: count is cut off or too large", ErrState)
		}
		*p, rest = v, rest[n:]
	}
	if len(rest) > 0 {
		e.data = rest
	}
	return e, nil
}
