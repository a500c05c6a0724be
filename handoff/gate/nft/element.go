// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/tcprepair"
)

// Parts of a concatenated key begin at multiples of four bytes.
const (
	portSize = 4
	key4Size = 2 * (4 + portSize)
	key6Size = 2 * (16 + portSize)
)

// encodeKey is a flow as the sets and maps have it: the client's address and port, the service's address and port.
func encodeKey(f tcprepair.Flow) []byte {
	b := make([]byte, 0, key6Size)
	for _, a := range []netip.AddrPort{f.Remote, f.Local} {
		b = append(b, a.Addr().AsSlice()...)
		b = binary.BigEndian.AppendUint16(b, a.Port())
		b = append(b, 0, 0)
	}
	return b
}

func decodeKey(b []byte) (tcprepair.Flow, error) {
	if len(b) != key4Size && len(b) != key6Size {
		return tcprepair.Flow{}, fmt.Errorf("key of %d bytes, want %d or %d", len(b), key4Size, key6Size)
	}
	half := len(b) / 2
	end := func(b []byte) netip.AddrPort {
		a, _ := netip.AddrFromSlice(b[:half-portSize])
		return netip.AddrPortFrom(a, binary.BigEndian.Uint16(b[half-portSize:]))
	}
	f := tcprepair.Flow{Remote: end(b[:half]), Local: end(b[half:])}
	if !f.IsValid() {
		return f, fmt.Errorf("key %x is no flow", b)
	}
	return f, nil
}

// chainPrefix is what the chains of nodes begin with.
const chainPrefix = "node-"

func chainName(n gate.Node) string { return chainPrefix + strconv.Itoa(int(n)) }

// nodeOf is the node whose chain it is, or 0.
func nodeOf(chain string) gate.Node {
	number, ok := strings.CutPrefix(chain, chainPrefix)
	n, err := strconv.ParseUint(number, 10, 16)
	if !ok || err != nil || n >= MaxNodes {
		return 0
	}
	return gate.Node(n)
}

// encodeOwner is an element's comment: what its verdict does not say, or says only to the kernel.
func encodeOwner(r gate.RouteInfo) string {
	return chainName(r.Node) + " epoch " + strconv.FormatUint(uint64(r.Epoch), 10)
}

func decodeOwner(comment string) (r gate.RouteInfo, err error) {
	chain, epoch, _ := strings.Cut(comment, " epoch ")
	e, err := strconv.ParseUint(epoch, 10, 32)
	if n := nodeOf(chain); n != 0 && err == nil && e != 0 {
		return gate.RouteInfo{Node: n, Epoch: uint32(e)}, nil
	}
	return r, fmt.Errorf("element with comment %q: not of a gate", comment)
}
