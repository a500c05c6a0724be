// SPDX-License-Identifier: Apache-2.0

package criu

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
)

const (
	// maxRounds bounds how often a tree's memory is read ahead of the freeze. A round that finds fewer new pages than enoughPages is the
	// last.
	maxRounds   = 4
	enoughPages = 4096
	// A page is in memory or in swap (Documentation/admin-guide/mm/pagemap.rst).
	pageIsThere = 1<<63 | 1<<62
)

// Send sends a running tree's memory ahead. It stops nothing, and what it misses comes with the dump.
func (a *Ahead) Send(tree []int, sink func(Piece) error) error {
	for range maxRounds {
		added := 0
		for _, pid := range tree {
			n, err := a.process(pid, sink)
			if err != nil {
				return err
			}
			added += n
		}
		if added < enoughPages {
			break
		}
	}
	return nil
}

// process sends what one process has in its private memory.
func (a *Ahead) process(pid int, sink func(Piece) error) (int, error) {
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return 0, nil // it has ended: the dump will say so
	}
	pagemap, err := os.Open(fmt.Sprintf("/proc/%d/pagemap", pid))
	if err != nil {
		return 0, nil
	}
	defer pagemap.Close() //nolint:errcheck // read only
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		return 0, nil
	}
	defer mem.Close() //nolint:errcheck // read only
	added := 0
	for line := range strings.Lines(string(maps)) {
		r, ok := parseMapping(line)
		if !ok {
			continue
		}
		n, err := a.mapping(r, pagemap, mem, sink)
		if err != nil {
			return added, err
		}
		added += n
	}
	return added, nil
}

// mapping is a range of addresses.
type mapping struct{ from, to uint64 }

// parseMapping reads a line of /proc/PID/maps (proc_pid_maps(5)); false when it is not private memory that can be written.
func parseMapping(line string) (mapping, bool) {
	fields := strings.Fields(line)
	if len(fields) < 2 || len(fields[1]) < 4 || fields[1][1] != 'w' || fields[1][3] != 'p' {
		return mapping{}, false
	}
	first, second, ok := strings.Cut(fields[0], "-")
	from, err1 := strconv.ParseUint(first, 16, 64)
	to, err2 := strconv.ParseUint(second, 16, 64)
	if !ok || err1 != nil || err2 != nil || from >= to || from%PageSize != 0 || to%PageSize != 0 {
		return mapping{}, false
	}
	return mapping{from, to}, true
}

// mapping sends the pages of a mapping that are there.
func (a *Ahead) mapping(r mapping, pagemap, mem io.ReaderAt, sink func(Piece) error) (int, error) {
	const pages = MaxPiece / PageSize
	flags, memory := make([]byte, pages*8), make([]byte, MaxPiece)
	added := 0
	for at := r.from; at < r.to; at += pages * PageSize {
		count := int(min(pages, (r.to-at)/PageSize))
		n, err := pagemap.ReadAt(flags[:count*8], int64(at/PageSize*8))
		if err != nil && !errors.Is(err, io.EOF) {
			return added, nil // it has changed meanwhile
		}
		for from := 0; from < n/8; {
			to := from
			for to < n/8 && binary.NativeEndian.Uint64(flags[to*8:])&pageIsThere != 0 {
				to++
			}
			if to == from {
				from++
				continue
			}
			b := memory[:(to-from)*PageSize]
			got, _ := mem.ReadAt(b, int64(at)+int64(from)*PageSize)
			more, err := a.add(b[:got/PageSize*PageSize], sink)
			if err != nil {
				return added, err
			}
			added += more
			from = to
		}
	}
	return added, nil
}
