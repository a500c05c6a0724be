// SPDX-License-Identifier: Apache-2.0

package leakcheck

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
)

func namespaces(cfg Config) ([]string, error) {
	if cfg.Namespaces == "" {
		return nil, nil
	}
	entries, err := os.ReadDir("/run/netns")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("network namespaces: %w", err)
	}
	var list []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), cfg.Namespaces) {
			list = append(list, "network namespace "+e.Name())
		}
	}
	return list, nil
}

func links(cfg Config) ([]string, error) {
	if cfg.Links == "" {
		return nil, nil
	}
	nl, err := netlink.NewHandle()
	if err != nil {
		return nil, fmt.Errorf("network links: %w", err)
	}
	defer nl.Close()
	all, err := nl.LinkList()
	if err != nil {
		return nil, fmt.Errorf("network links: %w", err)
	}
	var list []string
	for _, l := range all {
		if strings.HasPrefix(l.Attrs().Name, cfg.Links) {
			list = append(list, fmt.Sprintf("network link %s of index %d", l.Attrs().Name, l.Attrs().Index))
		}
	}
	return list, nil
}

func files(cfg Config) ([]string, error) {
	var list []string
	for _, pattern := range cfg.Files {
		found, err := filepath.Glob(pattern)
		if err != nil {
			return nil, fmt.Errorf("files %q: %w", pattern, err)
		}
		for _, f := range found {
			list = append(list, "file "+f)
		}
	}
	return list, nil
}

// bpfObjects lists programs, maps and links by name. Objects that go while they are listed are skipped.
func bpfObjects(cfg Config) ([]string, error) {
	if len(cfg.BPF) == 0 {
		return nil, nil
	}
	wanted := func(name string) bool {
		return slices.ContainsFunc(cfg.BPF, func(p string) bool { return strings.HasPrefix(name, p) })
	}
	var list []string
	names := make(map[ebpf.ProgramID]string)
	err := eachID(ebpf.ProgramGetNextID, func(id ebpf.ProgramID) error {
		p, err := ebpf.NewProgramFromID(id)
		if err != nil {
			return err
		}
		defer p.Close() //nolint:errcheck // nothing was written
		info, err := p.Info()
		if err == nil && wanted(info.Name) {
			names[id] = info.Name
			list = append(list, fmt.Sprintf("BPF program %s of id %d", info.Name, id))
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("BPF programs: %w", err)
	}
	err = eachID(ebpf.MapGetNextID, func(id ebpf.MapID) error {
		m, err := ebpf.NewMapFromID(id)
		if err != nil {
			return err
		}
		defer m.Close() //nolint:errcheck // nothing was written
		info, err := m.Info()
		if err == nil && wanted(info.Name) {
			list = append(list, fmt.Sprintf("BPF map %s of id %d", info.Name, id))
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("BPF maps: %w", err)
	}
	var it link.Iterator
	defer it.Close() //nolint:errcheck // nothing was written
	for it.Next() {
		info, err := it.Link.Info()
		if err == nil && names[info.Program] != "" {
			list = append(list, fmt.Sprintf("BPF link of id %d to program %s", it.ID, names[info.Program]))
		}
	}
	if err := it.Err(); err != nil {
		return nil, fmt.Errorf("BPF links: %w", err)
	}
	return list, nil
}

// eachID calls visit with every id that next gives.
func eachID[ID ~uint32](next func(ID) (ID, error), visit func(ID) error) error {
	for id := ID(0); ; {
		var err error
		id, err = next(id)
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("next after %d (wants CAP_SYS_ADMIN): %w", id, err)
		}
		if err := visit(id); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
}
