// SPDX-License-Identifier: Apache-2.0

package forward

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// attachment is a program at an interface. Close detaches it unless it is pinned.
type attachment interface {
	Close() error
	Unpin() error
	Update(*ebpf.Program) error
}

// attach puts the programs in place, in the mode that is wished for and works.
func (f *Forwarder) attach() error {
	if f.config.Mode == XDP {
		why, err := f.attachXDP()
		if err != nil {
			return err
		}
		if why == nil {
			f.mode = XDP
			return f.discard(TCX)
		}
		f.config.Logger.Warn("XDP is not used; tcx instead", "why", why)
	}
	for _, p := range f.points {
		if err := f.attachTCX(p); err != nil {
			return fmt.Errorf("interface %s: %w", p.name, err)
		}
	}
	return f.discard(XDP)
}

// discard removes pinned links of a mode that is not in use any more. It comes after the other's are in place, so that no
// packet finds neither.
func (f *Forwarder) discard(mode Mode) error {
	for _, p := range f.points {
		path := f.pin(p, mode)
		if path == "" {
			continue
		}
		old, err := link.LoadPinnedLink(path, nil)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err == nil {
			err = errors.Join(old.Unpin(), old.Close())
		}
		if err != nil {
			return fmt.Errorf("remove %s: %w", path, err)
		}
	}
	return nil
}

// pin names the pinned link of one interface; empty without Config.PinPath.
func (f *Forwarder) pin(p *point, mode Mode) string {
	if f.config.PinPath == "" {
		return ""
	}
	return filepath.Join(f.config.PinPath, "link_"+p.name+"_"+mode.String())
}

// resume replaces the program of a pinned link by ours. nil: there is none, or it has gone with its interface.
func resume(path string, program *ebpf.Program) (link.Link, error) {
	if path == "" {
		return nil, nil
	}
	old, err := link.LoadPinnedLink(path, nil)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("load %s: %w", path, err)
	}
	if old.Update(program) == nil {
		return old, nil
	}
	if err := errors.Join(old.Unpin(), old.Close()); err != nil {
		return nil, fmt.Errorf("replace %s: %w", path, err)
	}
	return nil, nil
}

// attachTCX puts the program first at its hook: a program in front that returns TC_ACT_OK would silently end the chain,
// and the gate, if there is one, has its place behind.
func (f *Forwarder) attachTCX(p *point) error {
	program, path := f.table.objects.RehomeForward, f.pin(p, TCX)
	old, err := resume(path, program)
	if err != nil {
		return err
	}
	if old != nil {
		p.attached = old
		if first, err := f.isFirst(p); err != nil || first {
			return err
		}
		// Somebody has put itself in front meanwhile. Both links stand for a moment: the second program finds
		// nothing left to do.
		if err := old.Unpin(); err != nil {
			return err
		}
	} else if err := vacant(p, program); err != nil {
		return err
	}
	l, err := link.AttachTCX(link.TCXOptions{
		Interface: p.ifindex, Program: program, Attach: ebpf.AttachTCXIngress, Anchor: link.Head(),
	})
	if err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	p.attached = l
	if old != nil {
		if err := old.Close(); err != nil {
			return err
		}
	}
	return pinAt(l, path)
}

func pinAt(l link.Link, path string) error {
	if path == "" {
		return nil
	}
	if err := l.Pin(path); err != nil {
		return fmt.Errorf("pin %s: %w", path, err)
	}
	return nil
}

// isFirst tells whether the interface's packets come to our program before any other.
func (f *Forwarder) isFirst(p *point) (bool, error) {
	present, err := link.QueryPrograms(link.QueryOptions{Target: p.ifindex, Attach: ebpf.AttachTCXIngress})
	if err != nil {
		return false, err
	}
	ours, err := f.table.objects.RehomeForward.Info()
	if err != nil {
		return false, err
	}
	id, ok := ours.ID()
	return ok && len(present.Programs) > 0 && present.Programs[0].ID == id, nil
}

// vacant looks for another forwarder at the same hook: two tables would give two answers.
func vacant(p *point, program *ebpf.Program) error {
	present, err := link.QueryPrograms(link.QueryOptions{Target: p.ifindex, Attach: ebpf.AttachTCXIngress})
	if err != nil {
		return err
	}
	ours, err := program.Info()
	if err != nil {
		return err
	}
	for _, other := range present.Programs {
		there, err := ebpf.NewProgramFromID(other.ID)
		if err != nil {
			continue // gone meanwhile
		}
		info, err := there.Info()
		_ = there.Close()
		if err == nil && info.Name == ours.Name {
			return fmt.Errorf("%w: program %d", ErrAttached, other.ID)
		}
	}
	return nil
}
