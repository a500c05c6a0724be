// SPDX-License-Identifier: Apache-2.0

package netnslab

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// stateDir holds a file <lab>.json for every standing lab.
const stateDir = "/run/rehome-lab"

// stateVersion is the version of the file. A lab does not outlive the program's upgrade: another version is refused.
const stateVersion = 1

// state is what another process must know of a lab.
type state struct {
	Version   int       `json:"version"`
	Topology  Topology  `json:"topology"`
	Processes []process `json:"processes,omitempty"`
}

func statePath(lab string) string { return filepath.Join(stateDir, lab+".json") }

// createState claims the lab's name. ErrExists if it is taken.
func createState(s state) error {
	return withStateLock(func() error {
		if _, err := os.Lstat(statePath(s.Topology.Name)); err == nil {
			return fmt.Errorf("%w: take it down (rehome lab down --lab %s) or choose another name", ErrExists, s.Topology.Name)
		}
		// A lab whose state was lost: its namespaces are not ours to use, nor to remove when building fails.
		left, err := labNamespaces(s.Topology.Name)
		if err != nil {
			return err
		}
		if len(left) > 0 {
			return fmt.Errorf("%w, without state: take it down (rehome lab down --lab %s): %v", ErrExists, s.Topology.Name, left)
		}
		return writeState(s)
	})
}

// readState returns ErrNotFound if there is no such lab.
func readState(lab string) (state, error) {
	if err := validLabName(lab); err != nil {
		return state{}, err
	}
	data, err := os.ReadFile(statePath(lab))
	if errors.Is(err, os.ErrNotExist) {
		return state{}, fmt.Errorf("lab %s: %w", lab, ErrNotFound)
	}
	if err != nil {
		return state{}, fmt.Errorf("lab state: %w", err)
	}
	var s state
	if err := json.Unmarshal(data, &s); err != nil {
		return state{}, fmt.Errorf("lab state %s: %w", statePath(lab), err)
	}
	if s.Version != stateVersion {
		return state{}, fmt.Errorf("lab state %s: version %d, this program knows %d", statePath(lab), s.Version, stateVersion)
	}
	return s, nil
}

// updateState changes the file under the lock, so that processes working in one lab do not lose each other's changes.
func updateState(lab string, change func(*state)) error {
	return withStateLock(func() error {
		s, err := readState(lab)
		if err != nil {
			return err
		}
		change(&s)
		return writeState(s)
	})
}

func removeState(lab string) error {
	return withStateLock(func() error {
		if err := os.Remove(statePath(lab)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("lab state: %w", err)
		}
		return nil
	})
}

func writeState(s state) error {
	data, err := json.MarshalIndent(s, "", "\t")
	if err != nil {
		return fmt.Errorf("lab state: %w", err)
	}
	path := statePath(s.Topology.Name)
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		return fmt.Errorf("lab state: %w", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("lab state: %w", err)
	}
	return nil
}

func withStateLock(f func() error) error {
	if err := os.MkdirAll(stateDir, 0o755); err != nil {
		return fmt.Errorf("lab state: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(stateDir, ".lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("lab state: %w", err)
	}
	defer lock.Close() //nolint:errcheck // nothing is written; closing releases the lock
	for {
		err = unix.Flock(int(lock.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("lab state: lock: %w", err)
	}
	return f()
}

// List returns the names of the standing labs, in order.
func List() ([]string, error) {
	return labs(func(namespaces int) bool { return namespaces > 0 })
}

// Remains returns the names of labs of which a record is left, and no namespace: the machine was restarted, or the namespaces were removed by
// other means. Down removes what is left of them.
func Remains() ([]string, error) {
	return labs(func(namespaces int) bool { return namespaces == 0 })
}

// labs returns the names of recorded labs whose number of namespaces is as wanted, in order.
func labs(wanted func(namespaces int) bool) ([]string, error) {
	entries, err := os.ReadDir(stateDir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("list labs: %w", err)
	}
	var names []string
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".json")
		if !ok || validLabName(name) != nil {
			continue
		}
		standing, err := labNamespaces(name)
		if err != nil {
			return nil, err
		}
		if wanted(len(standing)) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}
