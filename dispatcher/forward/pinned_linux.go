// SPDX-License-Identifier: Apache-2.0

package forward

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
)

// layout is LAYOUT in bpf/table.h; firstLayout is what the tables of the first version say.
const (
	layout      = 2
	firstLayout = 0
)

// pinned is what a former process has left.
type pinned struct {
	setting  forwardSetting // zero if there are no tables yet
	services []formerService
}

// formerService is a service of the first layout.
type formerService struct {
	key   forwardServiceKey
	value forwardService
}

// takeOver has the pinned maps used, of the size they have. Nothing is attached before the seeds are written, so tables without
// them are empty. The first layout's flows are this one's; its services are converted, and its counters begin anew.
func takeOver(spec *ebpf.CollectionSpec, dir string) (found pinned, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return found, fmt.Errorf("pin path: %w", err)
	}
	if found.setting, err = formerSetting(dir); err != nil {
		return found, err
	}
	if v := found.setting.Version; v != firstLayout && v != layout {
		return found, fmt.Errorf("%w: files in %s are of layout %d, this is layout %d", ErrLayout, dir, v, layout)
	}
	for name, m := range spec.Maps {
		if name == "operations" || name == "events" || strings.HasPrefix(name, ".rodata") {
			continue // private to the process
		}
		m.Pinning = ebpf.PinByName
		path := filepath.Join(dir, name)
		old, err := ebpf.LoadPinnedMap(path, nil)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return found, fmt.Errorf("pinned map %s: %w", name, err)
		}
		m.MaxEntries = old.MaxEntries()
		if name == "meters" && old.Type() != m.Type {
			// An array once; services are counted anew.
			m.MaxEntries = spec.Maps[name].MaxEntries
			err = os.Remove(path)
		}
		if found.setting.Version == firstLayout && old.ValueSize() != m.ValueSize {
			m.MaxEntries = spec.Maps[name].MaxEntries
			err = found.convert(name, old, path)
		}
		if err := errors.Join(err, old.Close()); err != nil {
			return found, fmt.Errorf("pinned map %s: %w", name, err)
		}
	}
	for _, v := range []string{"4", "6"} {
		if spec.Maps["slots"+v].MaxEntries != spec.Maps["lines"+v].MaxEntries*lineSlots {
			return found, fmt.Errorf("pinned tables of IPv%s do not fit one another: remove the files in %s", v, dir)
		}
	}
	return found, nil
}

func formerSetting(dir string) (s forwardSetting, err error) {
	m, err := ebpf.LoadPinnedMap(filepath.Join(dir, "settings"), nil)
	if errors.Is(err, os.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return s, fmt.Errorf("pinned settings: %w", err)
	}
	if err := errors.Join(m.Lookup(uint32(0), &s), m.Close()); err != nil {
		return s, fmt.Errorf("pinned settings: %w", err)
	}
	return s, nil
}

// convert reads a map of the first layout and removes its file. Programs that are still attached go on with the map itself.
func (p *pinned) convert(name string, old *ebpf.Map, path string) error {
	switch name {
	case "stats":
	case "services":
		var key forwardServiceKey
		value := make([]byte, old.ValueSize())
		const fields = 4 + 4 + 2*MaxServiceNodes
		if len(value) != fields {
			return ErrLayout
		}
		for at := old.Iterate(); at.Next(&key, &value); {
			s := formerService{key: key, value: forwardService{Count: binary.NativeEndian.Uint32(value)}}
			for i := range s.value.Nodes {
				s.value.Nodes[i] = binary.NativeEndian.Uint16(value[8+2*i:])
			}
			p.services = append(p.services, s)
		}
	default:
		return ErrLayout
	}
	return os.Remove(path)
}
