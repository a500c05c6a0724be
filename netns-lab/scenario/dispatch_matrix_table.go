// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
)

// The first words of a flow's entry in package gate's table (struct flow of bpf/table.h).
const (
	wordRoute = iota
	wordHold
	wordsRead
)

// verdictDead is the least of the route word's verdicts with which an entry only waits for its removal.
const verdictDead = 2

// pinnedFlows counts the entries of the flow tables that are pinned somewhere below dir, and those on which a hold lies.
func pinnedFlows(dir string) (flows, held int, err error) {
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasPrefix(d.Name(), "flows") {
			return err
		}
		table, err := ebpf.LoadPinnedMap(path, &ebpf.LoadPinOptions{ReadOnly: true})
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		defer table.Close() //nolint:errcheck // read only
		if table.ValueSize()%8 != 0 || table.ValueSize() < 8*wordsRead {
			return fmt.Errorf("%s: %w: values of %d bytes", path, errors.ErrUnsupported, table.ValueSize())
		}
		var key, value []byte
		entries := table.Iterate()
		for entries.Next(&key, &value) {
			if binary.NativeEndian.Uint64(value[8*wordRoute:])>>8&0xff >= verdictDead {
				continue
			}
			flows++
			if binary.NativeEndian.Uint64(value[8*wordHold:]) != 0 {
				held++
			}
		}
		return entries.Err()
	})
	return flows, held, err
}
