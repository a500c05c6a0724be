// SPDX-License-Identifier: Apache-2.0

package cookie

import (
	"encoding/binary"
	"fmt"
)

// reportSize is that of struct report of bpf/cookie.c.
const reportSize = FlowSize + 16

func decodeReport(b []byte) (Report, error) {
	if len(b) < reportSize {
		return Report{}, fmt.Errorf("report of %d bytes, want %d", len(b), reportSize)
	}
	flow, err := DecodeFlow(b)
	if err != nil {
		return Report{}, err
	}
	return Report{
		Flow: flow, Reason: Reason(binary.NativeEndian.Uint32(b[FlowSize+8:])), Errno: binary.NativeEndian.Uint32(b[FlowSize+12:]),
	}, nil
}
