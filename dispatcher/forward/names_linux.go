// SPDX-License-Identifier: Apache-2.0

package forward

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"

	"github.com/rehome-net/rehome/handoff/gate"
)

// maxName is how long a host's name may be: as in DNS (RFC 1035, section 2.3.4).
const maxName = 255

// Names remembers which host a node's number means. It is a pinned map of no program's, so that it lives exactly as long as the pinned
// flow tables that have the numbers: beyond the process, and not beyond a restart of the host.
type Names struct {
	names *ebpf.Map
}

// OpenNames opens what is pinned in dir, or begins it. The directory may be a forwarder's (Config.PinPath), whose Remove removes
// it, too.
func OpenNames(dir string) (*Names, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, &OpError{Op: "open names", Err: fmt.Errorf("pin path: %w", err)}
	}
	const noPrealloc = 1 // BPF_F_NO_PREALLOC
	m, err := ebpf.NewMapWithOptions(&ebpf.MapSpec{
		Name: namesFile, Type: ebpf.Hash, KeySize: 4, ValueSize: maxName + 1, MaxEntries: MaxNodes, Flags: noPrealloc, Pinning: ebpf.PinByName,
	}, ebpf.MapOptions{PinPath: dir})
	if err != nil {
		if errors.Is(err, ebpf.ErrMapIncompatible) {
			err = fmt.Errorf("%w: file %s: %w", ErrLayout, filepath.Join(dir, namesFile), err)
		}
		return nil, &OpError{Op: "open names", Err: explain(err)}
	}
	return &Names{m}, nil
}

const namesFile = "names"

// Load returns the names of all numbers that have one.
func (n *Names) Load() (map[gate.Node]string, error) {
	all := make(map[gate.Node]string)
	var node uint32
	var name [maxName + 1]byte
	at := n.names.Iterate()
	for at.Next(&node, &name) {
		text, _, _ := strings.Cut(string(name[:]), "\x00")
		all[gate.Node(node)] = text
	}
	if err := at.Err(); err != nil {
		return nil, &OpError{Op: "load names", Err: err}
	}
	return all, nil
}

// Save replaces them. What has not changed is not written.
func (n *Names) Save(all map[gate.Node]string) error {
	known, err := n.Load()
	if err != nil {
		return err
	}
	for node, name := range all {
		if len(name) > maxName || name == "" {
			return &OpError{Op: "save names", Err: fmt.Errorf("name %.20q of %d bytes: want 1 to %d", name, len(name), maxName)}
		}
		if known[node] == name {
			continue
		}
		var value [maxName + 1]byte
		copy(value[:], name)
		if err := n.names.Put(uint32(node), value); err != nil {
			return &OpError{Op: "save names", Err: fmt.Errorf("node %d: %w", node, err)}
		}
	}
	for node := range known {
		if _, ok := all[node]; ok {
			continue
		}
		if err := n.names.Delete(uint32(node)); err != nil {
			return &OpError{Op: "save names", Err: fmt.Errorf("node %d: %w", node, err)}
		}
	}
	return nil
}

// Close closes it; what is pinned stays.
func (n *Names) Close() error { return n.names.Close() }
