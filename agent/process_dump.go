// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/agent/criu"
	"github.com/rehome-net/rehome/handoff/migration"
	"github.com/rehome-net/rehome/handoff/wire"
)

// dump lets CRIU run. It stops nothing before freeze.
func (s *processSource) dump() {
	p := s.e.peers[s.target]
	if p == nil || p.link == nil {
		s.step(migration.Event{Kind: migration.ExportRefused, Err: migration.ErrPeerLost})
		return
	}
	link := p.link
	s.dumping = true
	sink := func(p criu.Piece) error {
		if err := s.givenUp.Load(); err != nil {
			return *err
		}
		if err := link.Room(imageBacklog); err != nil {
			return err
		}
		return link.Send(s.id, &wire.Image{File: p.File, Data: p.Data, Pages: p.Pages})
	}
	requests := make(chan criu.Fetch, maxFetches)
	if s.lazy {
		s.memory = &memoryServer{link: link, requests: requests}
	}
	cfg := criu.DumpConfig{
		Path: s.path, PID: s.process.PID, Inside: s.process.Inside, Processes: len(s.process.Tree), ShellJob: s.process.ShellJob,
		Ahead: criu.NewAhead(s.aheadRoom), Sink: sink, Lazy: s.lazy,
		BeforeFreeze: func() error { return s.await(func() { s.shut() }) },
		Stopped: func(m criu.Manifest) error {
			if s.lazy {
				if err := s.serveMemory(link, requests); err != nil {
					return err
				}
			}
			return s.await(func() {
				s.image, s.result.ImageBytes = m, m.Bytes
				s.stopped()
			})
		},
	}
	tree := s.process.Tree
	go func() {
		err := s.sendAhead(&cfg, tree)
		if err == nil {
			err = criu.Dump(cfg)
		}
		if cfg.Tracked != nil {
			_ = cfg.Tracked.Close()
		}
		s.e.post(func(*engine) { s.dumped(err) })
	}()
}

// sendAhead sends the running tree's memory ahead: by what the kernel says has changed, if it does, else by contents. It runs beside the engine.
func (s *processSource) sendAhead(c *criu.DumpConfig, tree []int) error {
	if c.Lazy {
		return nil
	}
	began := time.Now()
	if can, err := criu.Probe(c.Path); err == nil && can.DirtyTracking {
		c.Tracked, err = criu.Track(*c, s.aheadRoom)
		if err == nil {
			s.e.log.Debug("sent memory ahead, as changed", "name", s.process.Name, "rounds", c.Tracked.Rounds(), "bytes", c.Tracked.Bytes(), "time", time.Since(began))
			return nil
		}
		s.e.log.Warn("cannot track changes of a process's memory: going by contents", "name", s.process.Name, "error", err)
	}
	err := c.Ahead.Send(tree, c.Sink)
	s.e.log.Debug("sent memory ahead, by contents", "name", s.process.Name, "pages", c.Ahead.Pages(), "time", time.Since(began))
	return err
}

// await brings CRIU's question to the engine and waits for the answer. It is called in CRIU's goroutine.
func (s *processSource) await(then func()) error {
	reply := make(chan error, 1)
	s.e.post(func(*engine) {
		if err := s.givenUp.Load(); err != nil {
			reply <- *err
			return
		}
		s.hook = reply
		then()
	})
	select {
	case err := <-reply:
		return err
	case <-s.e.stopped:
		if s.given.Load() {
			return nil // it must not run here
		}
		return errStopping
	}
}

// reply lets CRIU go on, if it waits.
func (s *processSource) reply(err error) {
	if s.hook != nil {
		s.hook <- err
		s.hook = nil
	}
}

// giveUp makes CRIU let the tree go on, now or as soon as it looks.
func (s *processSource) giveUp(err error) {
	if err == nil {
		return
	}
	s.givenUp.CompareAndSwap(nil, &err)
	s.reply(err)
}

// end lets CRIU end the tree. If CRIU is gone, the tree runs: it must not, any more.
func (s *processSource) end() {
	s.given.Store(true)
	if !s.dumping {
		s.kill()
	}
	s.reply(nil)
}

func (s *processSource) kill() {
	for _, pid := range s.process.Tree {
		_ = unix.Kill(pid, unix.SIGKILL)
	}
}

// dumped takes in the end of CRIU.
func (s *processSource) dumped(err error) {
	s.dumping, s.hook = false, nil
	if s.machine.State() == migration.SourceMoved || s.machine.State() == migration.SourceLost {
		if err != nil {
			s.e.log.Warn("CRIU did not end a process that is another host's now: ending it", "pid", s.process.PID, "error", err)
			s.kill()
		}
		s.finish()
		return
	}
	// The tree runs again.
	s.release()
	if !s.over {
		if err == nil {
			err = errors.New("the process has ended")
		}
		kind := migration.Canceled
		if s.machine.State() == migration.SourceFreezing {
			kind = migration.FreezeFailed
		}
		s.step(migration.Event{Kind: kind, Err: err})
		return
	}
	s.finish()
}
