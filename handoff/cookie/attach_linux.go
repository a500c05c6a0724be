// SPDX-License-Identifier: Apache-2.0

package cookie

import (
	"errors"
	"fmt"
	"os"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// Attach puts a program last at an interface's tcx ingress hook, and pins the link unless the path is empty. A link that is pinned there goes on
// with the new program, in one step. Errors: ErrAttached when a program of the same name is there already.
func Attach(ifindex int, program *ebpf.Program, path string) (link.Link, error) {
	old, err := pinned(path)
	if err != nil {
		return nil, err
	}
	if old != nil {
		if old.Update(program) == nil {
			return old, nil
		}
		// Its interface is gone.
		if err := errors.Join(old.Unpin(), old.Close()); err != nil {
			return nil, fmt.Errorf("replace %s: %w", path, err)
		}
	}
	if err := vacant(ifindex, program); err != nil {
		return nil, err
	}
	l, err := link.AttachTCX(link.TCXOptions{Interface: ifindex, Program: program, Attach: ebpf.AttachTCXIngress})
	if err != nil {
		return nil, fmt.Errorf("attach: %w", err)
	}
	if path != "" {
		if err := l.Pin(path); err != nil {
			return nil, errors.Join(fmt.Errorf("pin %s: %w", path, err), l.Close())
		}
	}
	return l, nil
}

// pinned opens the link that another process has pinned; nil if there is none.
func pinned(path string) (link.Link, error) {
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

// vacant looks for another program of the same name at the hook.
func vacant(ifindex int, program *ebpf.Program) error {
	present, err := link.QueryPrograms(link.QueryOptions{Target: ifindex, Attach: ebpf.AttachTCXIngress})
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
