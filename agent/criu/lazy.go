// SPDX-License-Identifier: Apache-2.0

package criu

import (
	"encoding/binary"
	"fmt"
)

// Fetch asks for memory of a tree that has been stopped.
type Fetch struct {
	// Process has the memory; it is the number that it sees itself.
	Process int
	// Address is where it begins there: a multiple of PageSize.
	Address uint64
	// Pages is how many are wanted, at least one. Fewer may come.
	Pages uint32
}

// Memory answers a Fetch, with whole pages, of which there is one at least.
type Memory struct {
	Process int
	Address uint64
	Data    []byte
}

// CRIU's protocol for memory (criu/page-xfer.c, struct page_server_iov): a header in the byte order of the machine, and the pages behind it in
// an answer.
const (
	iovBytes       = 32
	iovCommandMask = 1<<16 - 1
	iovAnswer      = 6 // with the pages' flags above it
	iovFetch       = 7
	iovClose       = 0x1023
	iovForceClose  = 0x1024
	iovPresent     = 1 << 2 << 16 // such a flag: the pages follow
)

// maxFetch bounds the pages of one request: CRIU asks for 4 MiB at most.
const maxFetch = 64 << 20 / PageSize

// parseRequest reads what a CRIU asks for that fetches memory; false when it asks for nothing any more, and wants to hear so.
func parseRequest(b []byte) (Fetch, bool, error) {
	if len(b) != iovBytes {
		return Fetch{}, false, fmt.Errorf("a request of %d bytes", len(b))
	}
	pages, address, process := binary.NativeEndian.Uint64(b[8:]), binary.NativeEndian.Uint64(b[16:]), binary.NativeEndian.Uint64(b[24:])
	switch command := binary.NativeEndian.Uint32(b) & iovCommandMask; command {
	case iovClose, iovForceClose:
		return Fetch{}, false, nil
	case iovFetch:
		f := Fetch{Process: int(process), Address: address, Pages: uint32(pages)}
		if pages > maxFetch || process > maxProcess {
			return Fetch{}, false, fmt.Errorf("a request for %d pages of process %d", pages, process)
		}
		return f, true, f.check()
	default:
		return Fetch{}, false, fmt.Errorf("unknown request %d", command)
	}
}

// maxProcess is the largest number of a process (PID_MAX_LIMIT).
const maxProcess = 1 << 22

// check reports whether a request, which may come from another host, can be meant.
func (f Fetch) check() error {
	if f.Process <= 0 || f.Process > maxProcess || f.Pages == 0 || f.Pages > maxFetch || f.Address%PageSize != 0 || f.Address > 1<<62 {
		return fmt.Errorf("%w: %d pages at %#x of process %d", ErrMemory, f.Pages, f.Address, f.Process)
	}
	return nil
}

// check reports whether an answer can be meant.
func (m Memory) check() error {
	if m.Process <= 0 || len(m.Data) == 0 || len(m.Data)%PageSize != 0 || m.Address%PageSize != 0 {
		return fmt.Errorf("%w: %d bytes at %#x of process %d", ErrMemory, len(m.Data), m.Address, m.Process)
	}
	return nil
}

// appendAnswer appends an answer for CRIU.
func appendAnswer(b []byte, m Memory) []byte {
	b = binary.NativeEndian.AppendUint32(b, iovAnswer|iovPresent)
	b = binary.NativeEndian.AppendUint32(b, 0) // padding
	b = binary.NativeEndian.AppendUint64(b, uint64(len(m.Data)/PageSize))
	b = binary.NativeEndian.AppendUint64(b, m.Address)
	b = binary.NativeEndian.AppendUint64(b, uint64(m.Process))
	return append(b, m.Data...)
}
