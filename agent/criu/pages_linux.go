// SPDX-License-Identifier: Apache-2.0

package criu

import (
	"errors"
	"fmt"
	"os"
)

// Pages reads the memory of a tree that has been stopped for a lazy dump, as long as it is. It is for one goroutine at a time.
type Pages struct {
	files map[int]*os.File // by the number that the process sees itself
	buf   [MaxPiece]byte
}

// OpenPages opens the memory of a tree's processes, which are numbered as this process sees them.
func OpenPages(tree []int) (*Pages, error) {
	p := &Pages{files: make(map[int]*os.File, len(tree))}
	for _, pid := range tree {
		s, err := readStatus(pid)
		var f *os.File
		if err == nil {
			f, err = os.Open(fmt.Sprintf("/proc/%d/mem", pid))
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("memory of process %d: %w", pid, err), p.Close())
		}
		p.files[s.inside()] = f
	}
	return p, nil
}

// Read returns the beginning of what is asked for, MaxPiece at most. Data is good until the next call.
func (p *Pages) Read(f Fetch) (Memory, error) {
	if err := f.check(); err != nil {
		return Memory{}, err
	}
	file := p.files[f.Process]
	if file == nil {
		return Memory{}, fmt.Errorf("%w: the tree has no process %d", ErrMemory, f.Process)
	}
	size := min(int(f.Pages)*PageSize, len(p.buf))
	n, err := file.ReadAt(p.buf[:size], int64(f.Address))
	if n < PageSize {
		return Memory{}, fmt.Errorf("%w: read process %d at %#x: %w", ErrMemory, f.Process, f.Address, err)
	}
	return Memory{Process: f.Process, Address: f.Address, Data: p.buf[:n/PageSize*PageSize]}, nil
}

// Close closes it.
func (p *Pages) Close() error {
	var errs []error
	for _, f := range p.files {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}
