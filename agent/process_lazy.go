// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/rehome-net/rehome/agent/criu"
	"github.com/rehome-net/rehome/handoff/migration"
	"github.com/rehome-net/rehome/handoff/wire"
)

const (
	// maxFetches bounds the requests for memory that wait at the source. CRIU has one for each process, and one for each thread that waits.
	maxFetches = 4096
	// fetchTime is how long the target waits for memory that it has asked for. Then the tree is ended, rather than left standing.
	fetchTime = 10 * time.Second
)

var (
	errMemoryGone = errors.New("the source of its memory is lost")
	errNotLazy    = errors.New("the target does not know memory that follows a process (--lazy): update rehome there")
)

// memoryServer is the source's part of a lazy move: it reads the stopped tree's memory for the target, beside the engine, as long as the tree is.
type memoryServer struct {
	// link leads to the target; who asks over another one has not got the tree.
	link     *wire.Link
	requests chan criu.Fetch
	bytes    atomic.Uint64
	// complete is set when the target has everything. The engine owns it, and keeping, which is set from the commit on.
	complete, keeping bool
	// lost is why the target will not get the rest.
	lost error
}

// serveMemory begins to serve a tree that has just been stopped. It is called in CRIU's goroutine.
func (s *processSource) serveMemory(link *wire.Link, requests <-chan criu.Fetch) error {
	tree, err := criu.Tree(s.process.PID)
	if err != nil {
		return err
	}
	pages, err := criu.OpenPages(tree)
	if err != nil {
		return err
	}
	go func() {
		defer pages.Close() //nolint:errcheck // read only
		for f := range requests {
			m, err := pages.Read(f)
			if err == nil {
				s.memory.bytes.Add(uint64(len(m.Data)))
				err = link.Send(s.id, &wire.Memory{Process: uint32(m.Process), Address: m.Address, Data: m.Data})
			}
			if err != nil {
				s.e.post(func(*engine) { s.cannotServe(err) })
				break
			}
		}
		for range requests { // until it is closed
		}
	}()
	return nil
}

// cannotServe tells the target that the rest cannot be had.
func (s *processSource) cannotServe(err error) {
	s.toTarget(&wire.Cancel{Reason: err.Error()})
	s.memoryLost(err)
}

// fetch takes in what the target asks for.
func (s *processSource) fetch(m *wire.Fetch) {
	switch {
	case s.memory == nil || s.memory.requests == nil:
	case m.Pages == 0:
		s.memory.complete = true
		s.letGo()
	default:
		select {
		case s.memory.requests <- criu.Fetch{Process: int(m.Process), Address: m.Address, Pages: m.Pages}:
		default:
			s.cannotServe(fmt.Errorf("more than %d requests for memory wait", maxFetches))
		}
	}
}

// keep reports whether the stopped tree is still needed, by a target that has it.
func (s *processSource) keep() bool {
	if s.memory == nil || s.memory.complete || s.memory.lost != nil || s.gone {
		return false
	}
	if p := s.e.peers[s.target]; p == nil || p.link != s.memory.link {
		s.memory.lost = migration.ErrPeerLost
		return false
	}
	s.memory.keeping = true
	return true
}

// letGo lets CRIU end a tree that nobody needs any more.
func (s *processSource) letGo() {
	if s.memory.keeping {
		s.memory.keeping = false
		s.end()
	}
}

// memoryLost is when a target that runs the tree will not get the rest of its memory: it ends the tree. Before the commit it means nothing.
func (s *processSource) memoryLost(err error) {
	if s.memory != nil && s.memory.keeping && !s.memory.complete {
		s.memory.lost = err
		s.letGo()
	}
}

// stopServing ends the server with the move.
func (s *processSource) stopServing() {
	if s.memory == nil || s.memory.requests == nil {
		return
	}
	close(s.memory.requests)
	s.memory.requests = nil
}

// arrivingMemory is the target's part of a lazy move.
type arrivingMemory struct {
	// waiting is how many requests have no answer; since is when the last answer or the first of those requests was, in Unix nanoseconds.
	waiting, since atomic.Int64
	bytes          atomic.Uint64
	// coming is set from when the tree runs until everything is there, or it is given up. The engine owns it.
	coming bool
}

// ask asks the source for memory. It is called in a goroutine of the chamber's.
func (t *processTarget) ask(f criu.Fetch) error {
	if t.memory.waiting.Add(1) == 1 {
		t.memory.since.Store(time.Now().UnixNano())
	}
	return t.from.link.Send(t.id, &wire.Fetch{Process: uint32(f.Process), Address: f.Address, Pages: f.Pages})
}

// memory gives a tree memory that has come. It is called by the goroutine that reads from the source.
func (e *engine) memory(id uint64, m *wire.Memory) {
	v, ok := e.memories.Load(id)
	if !ok {
		return
	}
	t, ok := v.(*processTarget)
	if !ok {
		return
	}
	t.memory.waiting.Add(-1)
	t.memory.since.Store(time.Now().UnixNano())
	t.memory.bytes.Add(uint64(len(m.Data)))
	_ = t.chamber.Give(criu.Memory{Process: int(m.Process), Address: m.Address, Data: m.Data}) // the chamber knows
}

// awaitMemory waits for the rest of a running tree's memory. It runs beside the engine.
func (t *processTarget) awaitMemory() {
	err := t.chamber.Wait()
	t.e.post(func(*engine) { t.allCame(err) })
}

// allCame ends the move. If something is missing the tree has been ended, and its clients have been told by a RST.
func (t *processTarget) allCame(err error) {
	t.memory.coming = false
	if err == nil {
		t.from.send(t.id, &wire.Fetch{})
		t.finish()
		return
	}
	t.live, t.err = false, err
	t.e.counters.lost++
	t.e.log.Error("a process is lost: its memory did not follow it", "name", t.offer.Name, "pid", t.pid, "error", err)
	t.e.nowListening(t.offer.Services, false)
	t.from.send(t.id, refusal(wire.Refusef(t.e.cfg.Host, wire.CodeFailed, "%v", err)))
	t.finish()
}

// abandon ends a tree whose memory cannot be had any more, wherever it is on its way.
func (t *processTarget) abandon(err error) {
	if t.memory == nil || t.chamber == nil {
		return
	}
	go t.chamber.Fail(fmt.Errorf("%w: %w", errMemoryGone, err)) // it looks at the tree
}

// tickMemory gives up a source that does not answer.
func (t *processTarget) tickMemory(now time.Time) {
	if t.memory == nil || t.memory.waiting.Load() <= 0 {
		return
	}
	if now.Sub(time.Unix(0, t.memory.since.Load())) > fetchTime {
		t.memory.since.Store(now.UnixNano())
		t.abandon(fmt.Errorf("no answer within %v", fetchTime))
	}
}
