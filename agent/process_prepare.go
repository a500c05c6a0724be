// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/agent/criu"
	"github.com/rehome-net/rehome/handoff/migration"
	"github.com/rehome-net/rehome/handoff/wire"
	"github.com/rehome-net/rehome/tcprepair"
)

// processOffered answers an offer: whatever speaks against it is found now, while the tree is still served.
func (e *engine) processOffered(in *incoming, id uint64, m *wire.Process) {
	if e.arrivals[id] != nil {
		return // a doubled frame
	}
	t := &processTarget{e: e, id: id, offer: m, from: in, started: time.Now()}
	if err := t.check(); err != nil {
		e.counters.refused++
		in.send(id, refusal(err))
		return
	}
	e.arrivals[id] = t
	path, limit := e.cfg.Process.CRIU, e.cfg.Process.ImageBytes
	go func() {
		err := t.prepare(path, limit)
		e.post(func(*engine) { t.prepared(err) })
	}()
}

func (t *processTarget) check() error {
	e, m := t.e, t.offer
	if e.draining || e.stopping {
		return wire.Refusef(e.cfg.Host, wire.CodeDraining, "")
	}
	if len(e.arrivals) >= e.cfg.Process.Incoming {
		return wire.Refusef(e.cfg.Host, wire.CodeBusy, "%d processes are moving here", len(e.arrivals))
	}
	for _, a := range m.Services {
		i := slices.IndexFunc(e.cfg.Services, func(s ServiceConfig) bool {
			return s.Process && slices.Contains(s.Addresses, a) && slices.Contains(s.Servers, e.cfg.Host)
		})
		if i < 0 {
			return wire.Refusef(e.cfg.Host, wire.CodeNoService, "%v is not configured here as the address of a process (process: true)", a)
		}
		if e.processMoves(e.cfg.Services[i]) {
			return wire.Refusef(e.cfg.Host, wire.CodeInUse, "a process of %s is being moved already", e.cfg.Services[i].Name)
		}
		t.entry = e.cfg.Services[i].Entry
		if err := e.localAddress(tcprepair.Flow{Local: a}); err != nil {
			return err
		}
	}
	if t.entry == "" {
		return wire.Refusef(e.cfg.Host, wire.CodeNoService, "no service is named")
	}
	for _, a := range m.Local {
		if addr := a.Addr().Unmap(); !addr.IsUnspecified() && !addr.IsLoopback() {
			if err := e.localAddress(tcprepair.NewFlow(a, a)); err != nil {
				return err
			}
		}
	}
	return nil
}

// prepare does what takes time before the offer is accepted, so that it does not within the freeze. It runs beside the engine.
func (t *processTarget) prepare(path string, limit int64) error {
	host, m := t.e.self.Host, t.offer
	path, _, err := criu.Find(path)
	if err != nil {
		return wire.Refusef(host, wire.CodeFailed, "%v", err)
	}
	if n, err := criu.RemoveLocks(); err != nil || n > 0 {
		t.e.log.Warn("packet filters that a CRIU had left", "removed", n, "error", err)
	}
	busy, err := whoListens()
	if err != nil {
		return wire.Refusef(host, wire.CodeFailed, "%v", err)
	}
	for _, a := range m.Local {
		if slices.ContainsFunc(busy, func(b netip.AddrPort) bool { return clash(a, b) }) {
			return wire.Refusef(host, wire.CodeInUse, "somebody listens at %v here: stop that server first", a)
		}
	}
	files := make([]criu.File, len(m.Files))
	for i, f := range m.Files {
		files[i] = criu.File(f)
	}
	if err := criu.CheckFiles(files); err != nil {
		return wire.Refusef(host, wire.CodeNotMovable, "%v", err)
	}
	if m.Lazy {
		if err := criu.CanFollow(path); err != nil {
			return wire.Refusef(host, wire.CodeFailed, "%v", err)
		}
		t.memory = &arrivingMemory{}
	}
	if limit <= 0 {
		limit = halfMemory()
	}
	if uint64(limit) < m.Bytes && !m.Lazy {
		return wire.Refusef(host, wire.CodeBusy, "an image of about %d bytes, and room for %d: raise process.image_bytes", m.Bytes, limit)
	}
	// What is not memory needs room, too.
	if need := m.Bytes + m.Bytes/8 + imageSlack; uint64(limit) > need {
		t.aheadRoom = uint64(limit) - need
	}
	if t.images, err = criu.NewStore(limit); err != nil {
		return wire.Refusef(host, wire.CodeFailed, "%v", err)
	}
	if uint64(limit) > 3*m.Bytes+imageSlack && !m.Lazy {
		if err := t.images.Reserve(m.Bytes); err != nil {
			return wire.Refusef(host, wire.CodeBusy, "%v", err)
		}
	}
	ids := make([]int, len(m.IDs))
	for i, id := range m.IDs {
		ids[i] = int(id)
	}
	c := criu.RestoreConfig{Path: path, Root: int(m.Root), IDs: ids, ShellJob: m.ShellJob}
	if m.Lazy {
		c.Fetch = t.ask
	}
	t.chamber, err = criu.NewChamber(c, t.images)
	if err != nil {
		return wire.Refusef(host, wire.CodeFailed, "%v", err)
	}
	return nil
}

// imageSlack is the room that is left for what is not memory, in bytes.
const imageSlack = 32 << 20

// clash reports whether two listeners cannot both be.
func clash(a, b netip.AddrPort) bool {
	x, y := a.Addr().Unmap(), b.Addr().Unmap()
	return a.Port() == b.Port() && (x == y || x.IsUnspecified() || y.IsUnspecified())
}

// halfMemory is a half of the host's memory, in bytes.
func halfMemory() int64 {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return 1 << 30
	}
	return int64(info.Totalram) * int64(info.Unit) / 2
}

// prepared accepts the offer.
func (t *processTarget) prepared(err error) {
	if err == nil {
		err = t.givenUp
	}
	if err != nil {
		t.from.send(t.id, refusal(err))
		t.over, t.err = true, err
		t.finish()
		return
	}
	t.e.images.Store(t.id, t)
	if t.memory != nil {
		t.e.memories.Store(t.id, t)
	}
	t.machine = migration.NewTarget(migration.TargetParams{Host: t.e.cfg.Host, Epoch: 1, Limit: t.offer.Limit}, t.e.processTimes())
	t.step(migration.Event{Kind: migration.Start})
}
