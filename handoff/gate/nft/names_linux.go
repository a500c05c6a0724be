// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables"

	"github.com/rehome-net/rehome/handoff/gate"
)

// maxName is how long a host's name may be, in bytes: what fits beside an element of a set (NFT_USERDATA_MAXLEN, less its header and end).
const maxName = 250

// Names remembers which host a node's number means. It is a set of the gate's table, so that it lives exactly as long as the rules that have the
// numbers: beyond the process if those do (Config.Keep), and not beyond a restart of the host.
type Names struct {
	g *Gate
}

// Names returns the gate's.
func (g *Gate) Names() Names { return Names{g} }

// Load returns the names of all numbers that have one.
func (n Names) Load() (map[gate.Node]string, error) {
	n.g.mu.Lock()
	defer n.g.mu.Unlock()
	all, err := n.load()
	if err != nil {
		return nil, &OpError{Op: "load names", Err: err}
	}
	return all, nil
}

func (n Names) load() (map[gate.Node]string, error) {
	if n.g.closed {
		return nil, ErrClosed
	}
	elements, err := n.g.elements(n.g.rules.names)
	if err != nil {
		return nil, err
	}
	all := make(map[gate.Node]string, len(elements))
	for _, e := range elements {
		if len(e.Key) != 4 || e.Comment == "" {
			return nil, fmt.Errorf("set %s: element %x of %q is no host's", n.g.rules.names.Name, e.Key, e.Comment)
		}
		all[gate.Node(binary.BigEndian.Uint32(e.Key))] = e.Comment
	}
	return all, nil
}

// Save replaces them. What has not changed is not written.
func (n Names) Save(all map[gate.Node]string) error {
	n.g.mu.Lock()
	defer n.g.mu.Unlock()
	if err := n.save(all); err != nil {
		return &OpError{Op: "save names", Err: err}
	}
	return nil
}

func (n Names) save(all map[gate.Node]string) error {
	known, err := n.load()
	if err != nil {
		return err
	}
	var out, in []nftables.SetElement
	for node, name := range known {
		if all[node] != name {
			out = append(out, nftables.SetElement{Key: nameKey(node)})
		}
	}
	for node, name := range all {
		if len(name) > maxName || name == "" {
			return fmt.Errorf("name %.20q of %d bytes: want 1 to %d", name, len(name), maxName)
		}
		if known[node] != name {
			in = append(in, nftables.SetElement{Key: nameKey(node), Comment: name})
		}
	}
	var errs []error
	for part := range slices.Chunk(out, maxBatch) {
		errs = append(errs, n.g.conn.SetDeleteElements(n.g.rules.names, part), n.g.flush())
	}
	for part := range slices.Chunk(in, maxBatch) {
		errs = append(errs, n.g.conn.SetAddElements(n.g.rules.names, part), n.g.flush())
	}
	return errors.Join(errs...)
}

func nameKey(n gate.Node) []byte { return binary.BigEndian.AppendUint32(nil, uint32(n)) }
