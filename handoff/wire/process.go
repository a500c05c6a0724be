// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"encoding/binary"
	"net/netip"
	"time"

	"github.com/rehome-net/rehome/tcprepair"
)

// MaxFlowSet is the most flows in one FlowSet.
const MaxFlowSet = 1024

// Process asks the target whether it would take a tree of processes, as Offer does for a connection.
type Process struct {
	// Token names the move in the entry's flow table; it is no connection.
	Token tcprepair.Flow
	// Name is that of the program, for people.
	Name string
	// Root is the number of the tree's first process, and IDs are all numbers that the tree uses (of processes, threads, groups and sessions), as it
	// sees them itself.
	Root uint32
	IDs  []uint32
	// ShellJob is set when a process outside of the tree leads its session.
	ShellJob bool
	// Limit is how long the source waits for the whole move, from the arrival of the offer.
	Limit time.Duration
	// Bytes is about how large the image will be.
	Bytes uint64
	// Services are the addresses of the services that the tree serves; Local are all addresses that it listens at.
	Services, Local []netip.AddrPort
	// Files are what it has open, and must find at the target.
	Files []File
	// Lazy asks the target to let the tree run before its memory is there, and to fetch that with Fetch.
	Lazy bool
}

// File is a file of a process: it must be there at the target, too.
type File struct {
	Path string
	// Size is that of a regular file, in bytes; -1 when it does not matter.
	Size int64
}

// Image carries the next part of one file of a tree's image. One without data and pages ends the file.
type Image struct {
	File string
	Data []byte
	// Pages, if there are any, are what the part consists of: numbers of pages that the target has already, in the order in which they were sent
	// ahead, and 2^32-1 for the next page of Data.
	Pages []uint32
}

// Fetch asks the source for memory of a tree that has been stopped there; the answer is Memory, in the order of the requests, or Refuse. One without
// pages says that all memory has come: until then the source keeps it.
type Fetch struct {
	// Process is the number of the process that has it, as it sees itself.
	Process uint32
	// Address is where it begins; Pages is how many are wanted, of 4096 bytes each. Fewer may come.
	Address uint64
	Pages   uint32
}

// Memory answers Fetch.
type Memory struct {
	Process uint32
	Address uint64
	Data    []byte
}

// ImageEnd says that the image is complete, as Transfer does for a connection: the tree has been stopped. Its fields say what must have
// come.
type ImageEnd struct {
	Files         uint32
	Bytes, Digest uint64
}

// FlowSet adds connections to the move of this id: for the target, which holds their packets from now on, and for the entry, which
// gives them to the target with the token, or not. The entry answers Leased or LeaseRefused.
type FlowSet struct {
	Flows []tcprepair.Flow
}

// LeaseGroup is Lease for a tree of processes: the lease is that of Token, which the entry makes the sender's. Commit and Abort of Token decide on
// all that FlowSet has added, and on who gets the services' new connections.
type LeaseGroup struct {
	Token    tcprepair.Flow
	To       string
	TTL      time.Duration
	Services []netip.AddrPort
}

// Shut asks the entry to let new connections of the services of this lease wait until it ends. The answer is Leased or LeaseRefused.
type Shut struct{}

func (m *Process) code(c *coder) {
	c.flow(1, &m.Token)
	c.text(2, &m.Name)
	integer(c, 3, &m.Root)
	c.numbers(4, &m.IDs)
	c.flag(5, &m.ShellJob)
	c.span(6, &m.Limit)
	integer(c, 7, &m.Bytes)
	c.addresses(8, &m.Services)
	c.addresses(9, &m.Local)
	coded(c, 10, &m.Files, func(f *File) []byte { return f.append(nil) }, func(f *File, v []byte) error { return f.parse(v) })
	c.flag(11, &m.Lazy)
}

func (m *Image) code(c *coder) {
	c.text(1, &m.File)
	c.bytes(2, &m.Data)
	c.numbers(3, &m.Pages)
}

func (m *Fetch) code(c *coder) {
	integer(c, 1, &m.Process)
	integer(c, 2, &m.Address)
	integer(c, 3, &m.Pages)
}

func (m *Memory) code(c *coder) {
	integer(c, 1, &m.Process)
	integer(c, 2, &m.Address)
	c.bytes(3, &m.Data)
}

func (m *ImageEnd) code(c *coder) {
	integer(c, 1, &m.Files)
	integer(c, 2, &m.Bytes)
	integer(c, 3, &m.Digest)
}

func (m *FlowSet) code(c *coder) {
	coded(c, 1, &m.Flows,
		func(f *tcprepair.Flow) []byte {
			return appendFlow(nil, *f, f.Local.Addr().AsSlice(), f.Remote.Addr().AsSlice())
		},
		func(f *tcprepair.Flow, v []byte) (err error) {
			*f, err = parseFlow(v)
			return err
		})
	if len(m.Flows) > MaxFlowSet {
		c.fail(1, "%d flows, at most %d", len(m.Flows), MaxFlowSet)
	}
}

func (m *LeaseGroup) code(c *coder) {
	c.flow(1, &m.Token)
	c.text(2, &m.To)
	c.span(3, &m.TTL)
	c.addresses(4, &m.Services)
}
func (m *Shut) code(*coder) {}

// append encodes one entry of Files with the grammar of a frame's fields. The size travels plus one: without it, it does not matter.
func (f *File) append(b []byte) []byte {
	c := coder{encoding: true, out: b}
	f.code(&c)
	return c.out
}

func (f *File) parse(v []byte) error {
	c := coder{}
	if err := c.scan(v); err != nil {
		return err
	}
	f.code(&c)
	return c.finish()
}

func (f *File) code(c *coder) {
	c.text(1, &f.Path)
	size := uint64(0) // of nothing that has come
	if c.encoding {
		size = uint64(f.Size) + 1
	}
	integer(c, 2, &size)
	if !c.encoding {
		f.Size = int64(size) - 1
	}
}

// coded codes a list of values that have a form of their own.
func coded[T any](c *coder, tag uint8, p *[]T, encode func(*T) []byte, decode func(*T, []byte) error) {
	var raw [][]byte
	if c.encoding {
		for i := range *p {
			raw = append(raw, encode(&(*p)[i]))
		}
	}
	c.list(tag, &raw)
	if c.encoding {
		return
	}
	for _, v := range raw {
		var e T
		if err := decode(&e, v); err != nil {
			c.fail(tag, "%v", err)
			return
		}
		*p = append(*p, e)
	}
}

// texts codes a list of texts.
func texts(c *coder, tag uint8, p *[]string) {
	coded(c, tag, p, func(s *string) []byte { return []byte(*s) }, func(s *string, v []byte) error {
		*s = string(v)
		return nil
	})
}

// addresses codes a list of addresses with their ports.
func (c *coder) addresses(tag uint8, p *[]netip.AddrPort) {
	coded(c, tag, p,
		func(a *netip.AddrPort) []byte { return binary.BigEndian.AppendUint16(a.Addr().AsSlice(), a.Port()) },
		func(a *netip.AddrPort, v []byte) error {
			if len(v) != 6 && len(v) != 18 {
				return ErrMalformed
			}
			*a = parseAddrPort(v)
			return nil
		})
}

// numbers codes a list of integers, 4 bytes each.
func (c *coder) numbers(tag uint8, p *[]uint32) {
	var raw []byte
	if c.encoding {
		for _, n := range *p {
			raw = binary.BigEndian.AppendUint32(raw, n)
		}
	}
	c.bytes(tag, &raw)
	if c.encoding {
		return
	}
	if len(raw)%4 != 0 {
		c.fail(tag, "numbers are cut off")
		return
	}
	for ; len(raw) > 0; raw = raw[4:] {
		*p = append(*p, binary.BigEndian.Uint32(raw))
	}
}
