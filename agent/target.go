// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/handoff/migration"
	"github.com/rehome-net/rehome/handoff/wire"
	"github.com/rehome-net/rehome/tcprepair"
)

// maxInlineState bounds the State in a Transfer, in bytes: it must fit into one Import with its other fields.
const maxInlineState = wire.MaxFrame / 2

// addressesAge is how long the list of the host's addresses is believed.
const addressesAge = 500 * time.Millisecond

// initialWindow is the kernel's congestion window of a new connection, in segments (RFC 6928).
const initialWindow = 10

// target carries out what a migration.Target decides. The engine owns it.
type target struct {
	e       *engine
	id      uint64
	machine *migration.Target
	flow    tcprepair.Flow
	service string
	epoch   uint32
	from    *incoming
	app     *application
	entry   string

	share    share // of parts, snapshot, state and early
	parts    wire.Assembly
	snapshot []byte
	state    []byte
	ahead    bool     // the application has been sent parts of the State
	imported bool     // and the Import
	held     bool     // the gate holds the flow's packets here
	live     bool     // the connection has been thawed
	early    [][]byte // held packets that came before the entry's answer
	last     bool     // and the mark behind them
	missed   int      // of those there was no room for
	restored *tcprepair.Restored
	pending  []migration.Event
	stepping bool
	started  time.Time
	// recovering is set when a former agent began the move: there is no source to talk to, and no lease to use.
	recovering bool
	// after are to be called when the move is over.
	after []func()
	// late is set when only the agent that restored the socket can thaw it.
	late bool
}

// offered answers an Offer: whatever speaks against it is found now, while the connection is still served.
func (e *engine) offered(in *incoming, id uint64, m *wire.Offer) {
	if e.targets[id] != nil {
		return // a doubled frame
	}
	t := &target{
		e: e, id: id, flow: m.Flow, service: m.Service, epoch: m.Epoch, from: in, started: time.Now(),
	}
	// The former connection of the same peer may not be known to be dead yet.
	if old := e.taking[t.flow]; old != nil && old.from != in && old.from.name == in.name && old.machine.State() == migration.TargetReserved {
		old.step(migration.Event{Kind: migration.PeerLost})
	}
	if err := t.check(); err != nil {
		e.counters.refused++
		in.send(id, refusal(err))
		return
	}
	t.machine = migration.NewTarget(migration.TargetParams{Host: e.cfg.Host, Epoch: m.Epoch, Limit: m.Limit}, e.times)
	e.targets[id], e.taking[t.flow] = t, t
	t.step(migration.Event{Kind: migration.Start})
}

func (t *target) check() error {
	e := t.e
	svc, ok := e.service(t.service, t.flow)
	switch {
	case e.draining || e.stopping:
		return wire.Refusef(e.cfg.Host, wire.CodeDraining, "")
	case !ok:
		return wire.Refusef(e.cfg.Host, wire.CodeNoService, "%s at %v is not configured here", t.service, t.flow.Local)
	case !t.from.closeBy.IsZero():
		return wire.Refusef(e.cfg.Host, wire.CodeNoService, "%s is no peer of this host any more", t.from.name)
	case e.taking[t.flow] != nil || e.moving[t.flow] != nil:
		return wire.Refusef(e.cfg.Host, wire.CodeInUse, "%v is being moved here already", t.flow)
	case len(e.targets) >= e.cfg.Migration.Incoming:
		return wire.Refusef(e.cfg.Host, wire.CodeBusy, "%d moves to this host are under way", len(e.targets))
	}
	if t.app = e.importer(t.service); t.app == nil {
		return wire.Refusef(e.cfg.Host, wire.CodeNoService, "no application here imports %s", t.service)
	}
	t.entry = svc.Entry
	return e.localAddress(t.flow)
}

// localAddress checks that the host holds the flow's address (KERNEL 14).
func (e *engine) localAddress(f tcprepair.Flow) error {
	if now := time.Now(); now.Sub(e.addressesAt) > addressesAge {
		addrs, err := localAddresses()
		if err != nil {
			return wire.Refusef(e.cfg.Host, wire.CodeNoAddress, "%v", err)
		}
		e.addresses, e.addressesAt = addrs, now
	}
	if !e.addresses[f.Local.Addr()] {
		return wire.Refusef(e.cfg.Host, wire.CodeNoAddress, "%v is not on this host, or not ready: add it to lo", f.Local.Addr())
	}
	return nil
}

// localAddresses returns the host's addresses that can be used: an IPv6 address that is tentative cannot yet.
func localAddresses() (map[netip.Addr]bool, error) {
	list, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list the host's addresses: %w", err)
	}
	addrs := make(map[netip.Addr]bool, len(list))
	for _, a := range list {
		if addr, ok := netip.AddrFromSlice(a.IP); ok && a.Flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) == 0 {
			addrs[addr.Unmap()] = true
		}
	}
	return addrs, nil
}

func (t *target) step(ev migration.Event) { t.stepAt(time.Now(), ev) }

// stepAt is source.stepAt's twin.
func (t *target) stepAt(now time.Time, ev migration.Event) {
	t.pending = append(t.pending, ev)
	if t.stepping {
		return
	}
	t.begin(now, nil)
}

// begin is source.begin's twin.
func (t *target) begin(now time.Time, actions []migration.Action) {
	t.stepping = true
	for {
		for _, a := range actions {
			t.perform(a)
		}
		if len(t.pending) == 0 {
			break
		}
		ev := t.pending[0]
		t.pending = t.pending[1:]
		actions = t.machine.Step(now, ev)
	}
	t.stepping = false
}

func (t *target) perform(a migration.Action) {
	t.e.reach("target", a.Verb.String())
	switch a.Verb {
	case migration.Reserve:
		t.from.send(t.id, &wire.Accept{})
	case migration.SendStored:
		t.from.send(t.id, &wire.StateStored{})
	case migration.Restore:
		t.restore()
	case migration.SendCommit:
		t.commit()
	case migration.Thaw:
		t.thaw()
	case migration.ActivateApp:
		t.app.sendNow(t.id, &wire.Activate{}) // the client waits for this, and for nothing that follows
		if t.restored != nil {
			_ = t.restored.Close()
			t.restored = nil
		}
	case migration.SendCommitted:
		t.from.send(t.id, &wire.Committed{Epoch: t.epoch + 1})
		t.replay(t.early)
		t.share.giveAll(t.e)
		if t.missed > 0 {
			t.e.log.Warn("no room for packets that were held: the client will have to send them again", "flow", t.flow, "packets", t.missed)
		}
		if t.early = nil; t.last {
			t.step(migration.Event{Kind: migration.HeldLast})
		}
	case migration.SendRefuse:
		t.from.send(t.id, refusal(a.Err))
	case migration.WithdrawApp:
		t.app.send(t.id, &wire.Withdraw{Reason: a.Err.Error()})
	case migration.Discard:
		if t.restored != nil {
			if err := t.restored.Discard(); err != nil {
				t.e.log.Error("cannot discard a restored connection", "flow", t.flow, "error", err)
			}
			t.restored = nil
		}
	case migration.Release:
		t.release()
	case migration.Finish:
		t.finish(a.Err)
	default:
		t.e.log.Error("a target cannot do this", "verb", a.Verb)
	}
}

// frame takes in what the source sends after its offer.
func (t *target) frame(m wire.Message) {
	reserved := t.machine.State() == migration.TargetReserved
	switch m := m.(type) {
	case *wire.Chunk:
		if !reserved {
			return
		}
		// A snapshot has two queues and some more.
		limit := max(t.e.cfg.Migration.StateBytes, 2*t.e.cfg.Migration.QueueBytes+wire.ChunkSize)
		if !t.room(len(m.Data)) {
			return
		}
		if err := t.parts.Add(m, limit); err != nil {
			t.from.lost(err)
		}
	case *wire.StateSent:
		if reserved && !t.passOn() {
			t.step(migration.Event{Kind: migration.StateSent})
		}
	case *wire.Transfer:
		if !reserved {
			return
		}
		if len(m.State) > maxInlineState {
			t.from.lost(fmt.Errorf("%w: State of %d bytes within the freeze", wire.ErrTooLarge, len(m.State)))
			return
		}
		if !t.room(len(m.Snapshot) + len(m.State)) {
			return
		}
		t.snapshot, t.state = t.parts.Snapshot(m.Snapshot), m.State
		t.step(migration.Event{Kind: migration.Transferred})
	case *wire.Held:
		t.heldFrames(m)
	case *wire.Cancel:
		err := &wire.RefusedError{Who: "source " + t.from.name, Code: wire.CodeUnspecified, Reason: m.Reason}
		t.step(migration.Event{Kind: migration.Canceled, Err: err})
	}
}

// room counts n bytes that have come. If they are too many, the move ends: nothing has been restored yet, and the source goes on.
func (t *target) room(n int) bool {
	err := t.share.take(t.e, n)
	if err != nil {
		t.from.send(t.id, refusal(err))
		t.step(migration.Event{Kind: migration.Canceled, Err: err})
	}
	return err == nil
}

// heldFrames takes in what the source had held. A source that has heard of the commit from the entry can be faster than the entry's
// answer to this host: then it is kept until the thaw. If there is no room it is dropped, as on a network: the flow may be this host's
// by now, so the move cannot be given up for it.
func (t *target) heldFrames(m *wire.Held) {
	switch t.machine.State() {
	case migration.TargetCommitting:
		for _, f := range m.Frames {
			if t.share.take(t.e, len(f)) != nil {
				t.missed++
				continue
			}
			t.early = append(t.early, f)
		}
		t.last = t.last || m.Last
	case migration.TargetDraining:
		t.replay(m.Frames)
		if m.Last {
			t.step(migration.Event{Kind: migration.HeldLast})
		}
	}
}

func (t *target) replay(frames [][]byte) {
	if len(frames) == 0 {
		return
	}
	if err := t.e.gate.Replay(t.flow, frames); err != nil {
		t.e.log.Error("cannot replay held packets", "flow", t.flow, "error", err)
	}
}

// passOn gives the application what has come of the State, so that this need not be done within the freeze, and reports
// whether there was anything. The application's Pong then says that it has it.
func (t *target) passOn() bool {
	state, ahead := t.parts.TakeState(), t.parts.TakeAhead()
	if len(state)+len(ahead) == 0 {
		return false
	}
	t.ahead = true
	t.share.give(t.e, len(state)+len(ahead))
	t.sendParts(wire.BlobState, state)
	t.sendParts(wire.BlobAhead, ahead)
	t.app.send(t.id, &wire.Ping{})
	return true
}

func (t *target) sendParts(b wire.Blob, value []byte) {
	chunks, tail := wire.Split(b, value)
	if len(tail) > 0 {
		chunks = append(chunks, &wire.Chunk{Blob: b, Data: tail})
	}
	for _, c := range chunks {
		t.app.send(t.id, c)
	}
}

// restore makes the connection's socket and offers it to the application. The flow's packets are held here from now
// on: the first one after the entry has switched the path must wait for those that the source still has.
func (t *target) restore() {
	err := t.makeSocket()
	if err != nil {
		t.step(migration.Event{Kind: migration.RestoreFailed, Err: err})
		return
	}
	m := &wire.Import{Flow: t.flow, Epoch: t.epoch + 1, Service: t.service, State: t.state, Late: t.late}
	t.snapshot, t.state, t.parts = nil, nil, wire.Assembly{}
	t.share.giveAll(t.e)
	fd, err := unix.FcntlInt(uintptr(t.restored.FD()), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.drop()
		t.step(migration.Event{Kind: migration.RestoreFailed, Err: fmt.Errorf("duplicate the descriptor: %w", err)})
		return
	}
	t.step(migration.Event{Kind: migration.Restored})
	t.imported = true
	t.app.sendFD(t.id, m, fd)
}

func (t *target) makeSocket() error {
	snap, err := tcprepair.Decode(t.snapshot, tcprepair.Limits{QueueBytes: t.e.cfg.Migration.QueueBytes})
	if err != nil {
		return err
	}
	snap.Prepend(t.parts.Received())
	if snap.Flow != t.flow {
		return fmt.Errorf("the snapshot is of %v, offered was %v", snap.Flow, t.flow)
	}
	if err := t.e.gate.Hold(t.flow, gate.Ingress, t.e.times.HoldTTL()); err != nil {
		return fmt.Errorf("hold packets: %w", err)
	}
	t.held = true
	cfg := tcprepair.RestoreConfig{}
	if seeder, window := t.e.seeder, seedWindow(snap); seeder != nil && window > 0 {
		cfg.BeforeConnect = func(fd int) error { return seeder.Seed(fd, window) }
	}
	t.late = snap.Late()
	t.restored, err = tcprepair.Restore(snap, cfg)
	return err
}

// drop ends a restored socket that could not be offered.
func (t *target) drop() {
	_ = t.restored.Discard()
	t.restored = nil
}

// seedWindow returns the congestion window that the connection goes on with, in segments: what fills the path at the
// rate it had, but not what stood in queues on the way. Those have drained while the connection was frozen, and a whole
// window sent at once would overflow them (BBR keeps its window at twice what the path holds, or more).
func seedWindow(s *tcprepair.Snapshot) uint32 {
	a, mss := s.Advice, uint64(s.Negotiated.MSS)
	window := a.CongestionWindow
	if a.MinRTT <= 0 || a.PacingRate == 0 || mss == 0 {
		return window
	}
	fits := a.PacingRate * uint64(a.MinRTT.Microseconds()) / 1e6 / mss
	return uint32(min(max(fits, initialWindow), uint64(window)))
}

func (t *target) commit() {
	if t.recovering {
		t.fence()
		return
	}
	if t.entry != t.e.cfg.Host {
		t.e.peers[t.entry].send(t.id, &wire.Commit{Flow: t.flow, Epoch: t.epoch})
		return
	}
	owner := t.e.entry.Commit(time.Now(), t.id, t.flow, t.epoch, t.e.cfg.Host)
	t.step(migration.Event{Kind: migration.OwnerIs, Owner: owner})
}

// fence ends the lease and asks who the owner is (migration.RecoverTarget).
func (t *target) fence() {
	if t.entry != t.e.cfg.Host {
		t.e.peers[t.entry].send(t.id, &wire.Abort{Flow: t.flow, Epoch: t.epoch})
		return
	}
	owner := t.e.entry.Abort(time.Now(), t.id, t.flow, t.e.cfg.Host)
	t.step(migration.Event{Kind: migration.OwnerIs, Owner: owner})
}

// thaw makes the connection live. From here on the hold serves only the order of packets: it is cut down to the time for
// which the source's packets are waited for, in case this agent dies. The descriptor is closed when the application knows.
func (t *target) thaw() {
	t.live = true
	if t.held {
		if err := t.e.gate.Serve(t.flow, 2*t.e.times.HeldWait); err != nil {
			t.e.log.Error("cannot end a hold in time", "flow", t.flow, "error", err)
		}
	}
	err := t.restored.Thaw()
	if err == nil && t.recovering && t.late {
		err = errLate
	}
	if err != nil {
		t.e.log.Error("cannot thaw a connection: it will be reset", "flow", t.flow, "error", err)
		_ = t.restored.Reset()
		t.restored = nil
	}
	if t.e.cfg.drops() {
		t.release() // there is nothing to keep in order, and each packet that is dropped costs the client a timeout
	}
}

// release lets the flow's packets go: to the own stack when the connection lives here, else on their way.
func (t *target) release() {
	if !t.held {
		return
	}
	t.held = false
	var err error
	if t.live {
		_, err = t.e.gate.Release(t.flow)
	} else {
		err = t.e.gate.Yield(t.flow)
	}
	if err != nil {
		t.e.log.Error("cannot release held packets", "flow", t.flow, "error", err)
	}
}

func (t *target) finish(err error) {
	t.share.giveAll(t.e)
	delete(t.e.targets, t.id)
	delete(t.e.taking, t.flow)
	defer func() {
		for _, f := range t.after {
			f()
		}
	}()
	if t.machine.State() == migration.TargetLive {
		t.e.counters.movedIn++
		t.e.metrics.taken.Inc()
		t.e.polled.note(t.flow)
		return
	}
	if t.ahead && !t.imported {
		t.app.send(t.id, &wire.Withdraw{Reason: "the move was given up"})
	}
	t.e.counters.refused++
	t.e.log.Warn("did not take a connection over", "flow", t.flow, "from", t.from.name, "error", err)
}
