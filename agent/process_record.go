// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/agent/criu"
	"github.com/rehome-net/rehome/handoff/migration"
	"github.com/rehome-net/rehome/handoff/wire"
)

// processRecord is what an agent leaves behind about a tree that the target may have: CRIU lets the original go on when the agent dies. The
// next agent asks the entry, and ends the original if it is the target's.
type processRecord struct {
	ID    uint64
	Name  string
	Entry string
	Tree  []criu.Identity
}

const (
	// recordGlob matches the files of records beside the control socket.
	recordGlob = "process-*.json"
	// askEntryEvery is the time between two questions to an entry that does not answer.
	askEntryEvery = time.Second
)

// recordDir is where records are kept: it must not outlive the host's boot; empty when there is no such place.
func (c *Config) recordDir() string {
	if !c.controlIsPath() {
		return ""
	}
	return filepath.Dir(c.Control)
}

func recordPath(dir string, id uint64) string {
	return filepath.Join(dir, fmt.Sprintf("process-%d.json", id))
}

// record leaves a record. It is called before the target hears that the image is complete.
func (s *processSource) record() {
	dir := s.e.cfg.recordDir()
	if dir == "" {
		return
	}
	b, err := json.Marshal(processRecord{ID: s.id, Name: s.process.Name, Entry: s.entry, Tree: criu.Identify(s.process.PID)})
	if err == nil {
		err = os.WriteFile(recordPath(dir, s.id), b, 0o600)
	}
	if err != nil {
		s.e.log.Warn("cannot note that a process is being moved: should this agent die now, nobody ends its original", "error", err)
	}
	s.recorded = err == nil
}

// forget removes the record.
func (s *processSource) forget() {
	if s.recorded {
		_ = os.Remove(recordPath(s.e.cfg.recordDir(), s.id))
	}
}

// orphan is a tree of a record, until the entry has said whose it is.
type orphan struct {
	processRecord
	asked time.Time
}

// findOrphans reads what a former agent has left.
func (e *engine) findOrphans() {
	dir := e.cfg.recordDir()
	if dir == "" {
		return
	}
	paths, _ := filepath.Glob(filepath.Join(dir, recordGlob)) // the pattern is right
	for _, path := range paths {
		var r processRecord
		b, err := os.ReadFile(path)
		if err == nil {
			err = json.Unmarshal(b, &r)
		}
		if err != nil || recordPath(dir, r.ID) != path {
			e.log.Warn("the record of a process that a former agent was moving cannot be read", "path", path, "error", err)
			_ = os.Remove(path)
			continue
		}
		e.orphans[r.ID] = &orphan{processRecord: r}
	}
}

// tickOrphans asks the entries.
func (e *engine) tickOrphans(now time.Time) {
	for id, o := range e.orphans {
		if now.Sub(o.asked) < askEntryEvery {
			continue
		}
		o.asked = now
		if o.Entry == e.cfg.Host {
			e.orphanIs(id, e.entry.Abort(now, id, tokenOf(id), e.cfg.Host))
			continue
		}
		p := e.peer(o.Entry)
		if p == nil {
			e.orphanIs(id, migration.Owner{Unknown: true})
			continue
		}
		p.send(id, &wire.Abort{Flow: tokenOf(id), Epoch: 1})
	}
}

// orphanIs takes in whose a tree is, and reports whether it was one that this was asked of.
func (e *engine) orphanIs(id uint64, owner migration.Owner) bool {
	o := e.orphans[id]
	if o == nil {
		return false
	}
	delete(e.orphans, id)
	_ = os.Remove(recordPath(e.cfg.recordDir(), id))
	log := e.log.With("name", o.Name, "owner", owner.Host)
	switch {
	case owner.Host == e.cfg.Host:
		log.Info("a process that a former agent was moving has stayed here")
	case owner.Unknown:
		// Nothing was committed, as a rule; else it was long ago.
		log.Warn("a process that a former agent was moving is left alone: the entry does not know of its move", "processes", len(o.Tree))
	default:
		log.Warn("a process that a former agent was moving is another host's: ending what runs of it here", "processes", len(o.Tree))
		for _, p := range slices.Backward(o.Tree) {
			if err := p.Kill(); err != nil && !errors.Is(err, unix.ESRCH) {
				log.Error("cannot end a process", "pid", p.PID, "error", err)
			}
		}
	}
	return true
}
