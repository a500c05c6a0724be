// SPDX-License-Identifier: Apache-2.0

package forward

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// attachment is a program at an interface. Close detaches it unless it is pinned.
type attachment interface {
	Close() error
	Unpin() error
	Update(*ebpf.Program) error
}

// attach puts the programs in place, in the mode that is wished for and works.
func (f *Forwarder) attach() error {
	var late []link.Link
	if f.config.Mode == XDP {
		links, why, err := f.attachXDP()
		if err == nil && why == nil {
			f.mode = XDP
			return f.discard(TCX)
		}
		if err != nil {
			return errors.Join(err, closeAll(links))
		}
		f.config.Logger.Warn("XDP is not used; tcx instead", "why", why)
		late = links
	}
	for _, p := range f.points {
		if err := f.attachTCX(p); err != nil {
			return errors.Join(fmt.Errorf("interface %s: %w", p.name, err), closeAll(late))
		}
	}
	return errors.Join(f.discard(XDP), closeAll(late))
}

func closeAll(links []link.Link) error {
	var errs []error
	for _, l := range links {
		errs = append(errs, l.Close())
	}
	return errors.Join(errs...)
}

// discard removes pinned links of a mode that is not in use any more. It comes after the other's are in place, so that no
// packet finds neither.
func (f *Forwarder) discard(mode Mode) error {
	for _, p := range f.points {
		path := f.pin(p, mode)
		old, err := former(path)
		if err != nil {
			return err
		}
		if old == nil {
			continue
		}
		if err := errors.Join(old.Unpin(), old.Close()); err != nil {
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

// former opens the link that another process has pinned; nil if there is none.
func former(path string) (link.Link, error) {
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
	return old, nil
}

// attachTCX puts the program first at its hook: a program in front that returns TC_ACT_OK would silently end the chain,
// and the gate, if there is one, has its place behind. A pinned link goes on with the new program, in one step.
func (f *Forwarder) attachTCX(p *point) (err error) {
	program, path := f.table.objects.RehomeForward, f.pin(p, TCX)
	old, err := former(path)
	if err != nil {
		return err
	}
	if old != nil && isFirst(p, old) && old.Update(program) == nil {
		p.attached = old
		return nil
	}
	if old == nil {
		if err := vacant(p, program); err != nil {
			return err
		}
	}
	l, err := link.AttachTCX(link.TCXOptions{
		Interface: p.ifindex, Program: program, Attach: ebpf.AttachTCXIngress, Anchor: link.Head(),
	})
	if err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	p.attached = l
	if old != nil {
		// Its interface is gone, or somebody has put itself in front. It goes when the new one is there: no packet
		// finds neither.
		if err := errors.Join(old.Unpin(), old.Close()); err != nil {
			return fmt.Errorf("replace %s: %w", path, err)
		}
	}
	return pinAt(l, path)
}

// isFirst tells whether the interface's packets come to the link's program before any other.
func isFirst(p *point, l link.Link) bool {
	present, err := link.QueryPrograms(link.QueryOptions{Target: p.ifindex, Attach: ebpf.AttachTCXIngress})
	if err != nil {
		return false
	}
	info, err := l.Info()
	return err == nil && len(present.Programs) > 0 && present.Programs[0].ID == info.Program
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

// haveTCX asks for the programs at an interface that does not exist, which only a kernel with tcx answers with ENODEV.
// Others say EINVAL.
func haveTCX() error {
	const none = 1<<31 - 1
	_, err := link.QueryPrograms(link.QueryOptions{Target: none, Attach: ebpf.AttachTCXIngress})
	if errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}
