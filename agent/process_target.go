// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/agent/criu"
	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/handoff/migration"
	"github.com/rehome-net/rehome/handoff/wire"
	"github.com/rehome-net/rehome/tcprepair"
)

// flowBytes is about what a connection of a tree takes in memory while the tree moves.
const flowBytes = 128

// processTarget carries out what a migration.Target decides for a tree of processes. The engine owns it; CRIU runs beside.
type processTarget struct {
	e     *engine
	id    uint64
	offer *wire.Process
	from  *incoming
	entry string
	// machine is nil until everything is ready for the offer to be accepted.
	machine *migration.Target
	images  *criu.Store
	chamber *criu.Chamber
	// memory is nil unless the tree's memory follows it.
	memory *arrivingMemory
	// aheadRoom is how many bytes of memory can come ahead of the image.
	aheadRoom uint64

	flows []tcprepair.Flow
	held  bool
	early [][]byte // packets that the source held, and that came before the tree ran
	last  bool     // and the mark behind them
	// share is what flows and early take; missed are packets that it had no room for.
	share  share
	missed int
	// hook is where CRIU waits for a word: everything is restored.
	hook      chan error
	restoring bool
	// givenUp is set when the tree must not run.
	givenUp error
	// live is set when the tree is this host's, running when it runs.
	live, running bool
	pid           int
	// returning is set while the entry is asked to give the tree back to the source.
	returning bool

	pending  []migration.Event
	stepping bool
	over     bool
	err      error
	started  time.Time
	// after are to be called when the move is over.
	after []func()
}

func (t *processTarget) step(ev migration.Event) { t.stepAt(time.Now(), ev) }

// stepAt is source.stepAt's twin.
func (t *processTarget) stepAt(now time.Time, ev migration.Event) {
	if t.machine == nil {
		return
	}
	t.pending = append(t.pending, ev)
	if t.stepping {
		return
	}
	t.stepping = true
	for len(t.pending) > 0 {
		ev := t.pending[0]
		t.pending = t.pending[1:]
		for _, a := range t.machine.Step(now, ev) {
			t.perform(a)
		}
	}
	t.stepping = false
}

func (t *processTarget) perform(a migration.Action) {
	switch a.Verb {
	case migration.Reserve:
		t.from.send(t.id, &wire.Accept{Ahead: t.aheadRoom, Lazy: t.memory != nil})
	case migration.Restore:
		t.restore()
	case migration.SendCommit:
		t.commit()
	case migration.Thaw:
		t.thaw()
	case migration.ActivateApp, migration.SendCommitted, migration.WithdrawApp:
		// The source is told when the tree runs: until then it could not go on anywhere else.
	case migration.SendRefuse:
		t.from.send(t.id, refusal(a.Err))
	case migration.Discard:
		t.giveUp(errors.New("the move was given up"))
	case migration.Release:
		t.release()
	case migration.Finish:
		t.over = true
		if a.Err != nil {
			t.err = a.Err
		}
		if t.machine.State() != migration.TargetLive {
			t.giveUp(a.Err)
		}
		t.finish()
	default:
		t.e.log.Error("the target of a process cannot do this", "verb", a.Verb)
	}
}

// cancel gives up what has not asked the entry.
func (t *processTarget) cancel(err error) {
	if t.machine == nil {
		t.givenUp = err
		return
	}
	t.step(migration.Event{Kind: migration.Canceled, Err: err})
}

// refuse does so with a word to the source.
func (t *processTarget) refuse(err error) {
	t.from.send(t.id, refusal(err))
	t.cancel(err)
}

// lostSource gives up, unless the entry has been asked.
func (t *processTarget) lostSource(err error) {
	if t.machine != nil && t.machine.State() >= migration.TargetCommitting {
		t.step(migration.Event{Kind: migration.PeerLost, Err: err})
		t.abandon(err)
		return
	}
	t.cancel(fmt.Errorf("%w: %w", migration.ErrPeerLost, err))
}

// store takes a part of the image. It is called by the goroutine that reads from the source.
func (t *processTarget) store(m *wire.Image) {
	if err := t.images.Write(criu.Piece{File: m.File, Data: m.Data, Pages: m.Pages}); err != nil {
		if t.e.images.CompareAndDelete(t.id, t) {
			t.e.post(func(*engine) { t.refuse(wire.Refusef(t.e.self.Host, wire.CodeFailed, "%v", err)) })
		}
	}
}

// flowSet holds the packets of connections that are about to come.
func (t *processTarget) flowSet(m *wire.FlowSet) {
	if t.machine == nil || t.machine.State() != migration.TargetReserved {
		return
	}
	if err := t.share.take(t.e, len(m.Flows)*flowBytes); err != nil {
		t.refuse(err)
		return
	}
	t.flows, t.held = append(t.flows, m.Flows...), true
	for _, f := range m.Flows {
		// A path away from here, left by an earlier move, would also silence what CRIU makes the sockets send.
		if err := t.e.gate.Serve(f, t.e.processTimes().HoldTTL()); err != nil {
			t.refuse(wire.Refusef(t.e.cfg.Host, wire.CodeFailed, "hold packets: %v", err))
			return
		}
	}
}

// frame takes in what the source sends after its offer.
func (t *processTarget) frame(m wire.Message) {
	switch m := m.(type) {
	case *wire.ImageEnd:
		if t.machine == nil || t.machine.State() != migration.TargetReserved {
			t.from.send(t.id, &wire.Refuse{Code: wire.CodeNoFlow, Reason: "the move has been given up"})
			return
		}
		t.e.images.Delete(t.id)
		if err := t.images.Check(criu.Manifest{Files: m.Files, Bytes: m.Bytes, Digest: m.Digest}); err != nil {
			t.refuse(wire.Refusef(t.e.cfg.Host, wire.CodeFailed, "%v", err))
			return
		}
		t.step(migration.Event{Kind: migration.Transferred})
	case *wire.Held:
		t.heldFrames(m)
	case *wire.Cancel:
		err := &wire.RefusedError{Who: "source " + t.from.name, Code: wire.CodeUnspecified, Reason: m.Reason}
		t.cancel(err)
		if t.machine != nil && t.machine.State() >= migration.TargetCommitting {
			t.abandon(err)
		}
	}
}

// heldFrames takes in what the source had held, as target.heldFrames does: what comes before the tree runs is kept, as far as there is room.
// Before the entry has been asked, and after the end, no source has anything to send.
func (t *processTarget) heldFrames(m *wire.Held) {
	if t.machine == nil {
		return
	}
	switch t.machine.State() {
	case migration.TargetCommitting, migration.TargetDraining:
	default:
		return
	}
	for _, f := range m.Frames {
		if t.share.take(t.e, len(f)) != nil {
			t.missed++
			continue
		}
		t.early = append(t.early, f)
	}
	t.last = t.last || m.Last
	t.replay()
}

// restore lets CRIU make the tree.
func (t *processTarget) restore() {
	t.restoring = true
	go func() {
		_, err := t.chamber.Restore(
			func(pid int) error {
				reply := make(chan error, 1)
				t.e.post(func(*engine) { t.restored(pid, reply) })
				select {
				case err := <-reply:
					return err
				case <-t.e.stopped:
					return errStopping
				}
			},
			func() { t.e.post(func(*engine) { t.runs() }) })
		t.e.post(func(*engine) { t.ended(err) })
	}()
}

// restored is when the tree stands still with everything it needs: now the entry decides.
func (t *processTarget) restored(pid int, reply chan error) {
	if t.givenUp != nil {
		reply <- t.givenUp
		return
	}
	t.hook, t.pid = reply, pid
	t.step(migration.Event{Kind: migration.Restored})
	t.step(migration.Event{Kind: migration.Imported})
}

func (t *processTarget) commit() {
	if t.entry != t.e.cfg.Host {
		t.e.peers[t.entry].send(t.id, &wire.Commit{Flow: t.offer.Token, Epoch: 1})
		return
	}
	owner := t.e.entry.Commit(time.Now(), t.id, t.offer.Token, 1, t.e.cfg.Host)
	t.step(migration.Event{Kind: migration.OwnerIs, Owner: owner})
}

// thaw lets the tree run. The holds go on for the sake of the packets' order.
func (t *processTarget) thaw() {
	t.live = true
	t.e.nowListening(t.offer.Services, true)
	for _, f := range t.flows {
		if err := t.e.gate.Serve(f, 2*t.e.processTimes().HeldWait); err != nil {
			t.e.log.Error("cannot end a hold in time", "flow", f, "error", err)
		}
	}
	t.reply(nil)
}

func (t *processTarget) reply(err error) {
	if t.hook != nil {
		t.hook <- err
		t.hook = nil
	}
}

// giveUp ends the tree, also one that is just being made.
func (t *processTarget) giveUp(err error) {
	if t.live || t.givenUp != nil {
		return
	}
	if err == nil {
		err = migration.ErrNoReason
	}
	t.givenUp = err
	t.reply(err)
}

// runs is when the tree runs.
func (t *processTarget) runs() {
	t.running = true
	t.from.send(t.id, &wire.Committed{Epoch: 2, PID: uint32(t.pid)})
	t.replay()
}

// replay gives the tree what the source had held, as soon as it runs.
func (t *processTarget) replay() {
	if !t.running || t.machine.State() != migration.TargetDraining {
		return
	}
	ours := make(map[tcprepair.Flow]bool, len(t.flows))
	for _, f := range t.flows {
		ours[f] = true
	}
	frames := make(map[tcprepair.Flow][][]byte)
	for _, b := range t.early {
		if f, ok := gate.FlowOf(b); ok && ours[f] {
			frames[f] = append(frames[f], b)
		}
	}
	for _, b := range t.early {
		t.share.give(t.e, len(b))
	}
	t.early = nil
	for f, list := range frames {
		if err := t.e.gate.Replay(f, list); err != nil {
			t.e.log.Error("cannot replay held packets", "flow", f, "error", err)
		}
	}
	if t.last {
		t.step(migration.Event{Kind: migration.HeldLast})
	}
}

// ended takes in the end of CRIU.
func (t *processTarget) ended(err error) {
	t.restoring, t.hook = false, nil
	switch {
	case err == nil && t.live && t.memory != nil:
		t.memory.coming = true
		go t.awaitMemory()
	case err == nil && t.live:
	case err == nil:
		// It runs without having been told to.
		_ = unix.Kill(t.pid, unix.SIGKILL)
	case t.live && !t.running && errors.Is(err, criu.ErrMayHaveRun):
		t.lose(err)
	case t.live && !t.running:
		t.giveBack(err)
	case t.live && t.memory != nil:
		t.allCame(err)
		return
	case t.live:
		t.e.log.Warn("CRIU failed when a process that it has restored ran already", "name", t.offer.Name, "error", err)
	}
	if err == nil {
		err = migration.ErrNoReason
	}
	if !t.over && !t.live {
		kind := migration.Canceled
		if t.machine.State() == migration.TargetRestoring {
			kind = migration.RestoreFailed
		}
		t.step(migration.Event{Kind: kind, Err: wire.Refusef(t.e.cfg.Host, wire.CodeFailed, "%v", err)})
	}
	t.finish()
}

// giveBack asks the entry to take the tree back that did not come to life: nothing of it is left here, and the source, which has not been told
// anything, still has it.
func (t *processTarget) giveBack(err error) {
	t.e.log.Error("a process could not run here after the entry had given it to this host: giving it back", "name", t.offer.Name, "error", err)
	t.live, t.returning, t.err = false, true, err
	t.e.nowListening(t.offer.Services, false)
	if t.entry != t.e.cfg.Host {
		t.e.peers[t.entry].send(t.id, &wire.Abort{Flow: t.offer.Token, Epoch: 2})
		return
	}
	t.gaveBack(t.e.entry.Abort(time.Now(), t.id, t.offer.Token, t.e.cfg.Host))
}

// lose is for a tree that ended when it may have run already: the source's is older than what clients may have heard.
func (t *processTarget) lose(err error) {
	t.e.log.Error("a process is lost: it ended as soon as it ran here", "name", t.offer.Name, "error", err)
	t.live, t.err, t.over = false, err, true
	t.e.counters.lost++
	t.e.nowListening(t.offer.Services, false)
	t.from.send(t.id, &wire.Committed{Epoch: 2})
}

// gaveBack takes in who has the tree then.
func (t *processTarget) gaveBack(o migration.Owner) {
	t.returning = false
	if o.Host == t.from.name {
		t.from.send(t.id, refusal(wire.Refusef(t.e.cfg.Host, wire.CodeFailed, "given back, as it did not run: %v", t.err)))
	} else {
		// It is lost, and the source need not keep it.
		t.from.send(t.id, &wire.Committed{Epoch: 2})
	}
	t.over = true
	t.finish()
}

// release lets the packets go: to the own stack when the tree lives here, else on their way.
func (t *processTarget) release() {
	if !t.held {
		return
	}
	t.held = false
	for _, f := range t.flows {
		var err error
		if t.live {
			_, err = t.e.gate.Release(f)
		} else {
			err = t.e.gate.Yield(f)
		}
		if err != nil {
			t.e.log.Error("cannot release held packets", "flow", f, "error", err)
		}
	}
}

// finish ends the move when the machine and CRIU have.
func (t *processTarget) finish() {
	if !t.over || t.restoring || t.returning || t.memory != nil && t.memory.coming {
		return
	}
	if _, ok := t.e.arrivals[t.id]; !ok {
		return
	}
	t.release()
	t.e.images.Delete(t.id)
	t.e.memories.Delete(t.id)
	delete(t.e.arrivals, t.id)
	t.early = nil
	t.share.giveAll(t.e)
	if t.missed > 0 {
		t.e.log.Warn("no room for packets that were held: clients will have to send them again", "process", t.offer.Name, "packets", t.missed)
	}
	go t.clean(t.live)
	defer func() {
		for _, f := range t.after {
			f()
		}
	}()
	if t.live {
		t.e.counters.movedIn++
		t.e.metrics.taken.Inc()
		t.e.log.Info("took a process over", "name", t.offer.Name, "pid", t.pid, "from", t.from.name, "connections", len(t.flows))
		return
	}
	t.e.counters.refused++
	t.e.log.Warn("did not take a process over", "name", t.offer.Name, "from", t.from.name, "error", t.err)
}

// clean frees what the move needed. It runs beside the engine.
func (t *processTarget) clean(live bool) {
	var errs []error
	if t.chamber != nil && !live {
		errs = append(errs, t.chamber.Close())
	}
	if t.images != nil {
		errs = append(errs, t.images.Close())
	}
	if err := errors.Join(errs...); err != nil && !errors.Is(err, os.ErrClosed) && !strings.Contains(err.Error(), "signal: killed") {
		t.e.log.Warn("cleaning up after the move of a process", "error", err)
	}
}

// listenerOf returns the process that listens at one of the addresses.
func listenerOf(addresses []netip.AddrPort) (int, error) {
	return criu.FindListener(func(l netip.AddrPort) bool {
		return slices.ContainsFunc(addresses, func(a netip.AddrPort) bool { return listensAt([]netip.AddrPort{l}, a) })
	})
}
