// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rehome-net/rehome/handoff/calm"
	"github.com/rehome-net/rehome/handoff/cookie"
	"github.com/rehome-net/rehome/handoff/entry"
	"github.com/rehome-net/rehome/handoff/migration"
	"github.com/rehome-net/rehome/handoff/peer"
	"github.com/rehome-net/rehome/handoff/sockops"
	"github.com/rehome-net/rehome/handoff/wire"
	"github.com/rehome-net/rehome/tcprepair"
)

// maxDirty bounds how many links frames wait in while there is more to do.
const maxDirty = 64

// manyMoves are so many moves at the same time that all processors are of use: who waits then waits for the others.
const manyMoves = 16

// tickInterval is how precisely deadlines are kept.
const tickInterval = 20 * time.Millisecond

// event is something the engine's goroutine has to deal with.
type event func(e *engine)

// engine owns everything that moves: the sources, the targets and, at an entry, the ledger. One goroutine at a time has the turn: run's, or
// one that has read a frame while nothing else was to be done (handle). What comes from operators and timers reaches it through post. It
// never waits: links queue what they send, and the system calls it makes do not block.
type engine struct {
	turn turn
	// cfg, and what follows from it, changes with a reload: other goroutines use shared.
	cfg     Config
	times   migration.Config
	entries map[netip.AddrPort]string // of the addresses that this host serves
	shared  atomic.Pointer[shared]
	hosts   *directory
	// watched is nil when the ends of connections are not reported.
	watched watched
	// polled is nil unless those ends are looked for.
	polled *poll
	log    *slog.Logger
	gate   packetGate
	// seeder is nil where the kernel cannot seed congestion windows.
	seeder  *sockops.Seeder
	metrics *metrics
	self    peer.Self

	events   chan event
	stopped  chan struct{}
	sources  map[uint64]*source
	moving   map[tcprepair.Flow]*source
	targets  map[uint64]*target
	takers   map[uint64]*taker
	answered answers
	untaken  untaken
	taking   map[tcprepair.Flow]*target
	peers    map[string]*outgoing
	incoming map[*incoming]struct{}
	apps     map[*application]struct{}
	lists    map[uint64]*listing
	entry    *entry.Entry
	// absent are the servers that told this entry not to send them new connections; it remembers until they say otherwise.
	absent map[string]bool
	// idle are, of each server, the services that nobody listens for there; only of services that are processes. listening are those
	// that somebody listens for here.
	idle      map[string]map[string]bool
	listening map[string]bool
	lookAt    time.Time // when to look for listeners again
	looking   bool
	looked    uint64 // counts what makes a look that is under way worthless
	// processes leave this host, arrivals come to it. images are the arrivals' stores, for the goroutines that read from peers.
	processes map[uint64]*processSource
	arrivals  map[uint64]*processTarget
	orphans   map[uint64]*orphan // left by a former agent
	images    sync.Map
	memories  sync.Map // the same of those whose memory follows
	// draining is the operator's wish, stopping the end of this agent.
	draining, stopping bool
	// failure is when this host will fail, as an operator has announced; zero: nobody has.
	failure time.Time
	// addresses are the host's own, as of addressesAt.
	addresses   map[netip.Addr]bool
	addressesAt time.Time
	counters    counters
	// kept is the sum of all shares.
	kept int
	ops  map[*operation]struct{}
	// queued are the links that frames wait in.
	queued map[*wire.Link]struct{}
	// reporter is nil when no dispatcher is to hear of this host.
	reporter reporter
	// processors is nil when the process is not the agent's alone. Whole processes are worth all of them: much is sent, or written.
	processors *calm.Processors
	inject     injecting
	// acceptor makes connections without a handoff; acceptors gets it when it is opened.
	acceptor  acceptor
	acceptors chan *cookie.Acceptor
}

type counters struct {
	movedOut, movedIn, resumed, refused, lost, recovered uint64
}

func newEngine(cfg Config, g packetGate, seeder *sockops.Seeder, m *metrics, id *peer.Identity, log *slog.Logger) *engine {
	e := &engine{
		log:      log,
		gate:     g,
		seeder:   seeder,
		metrics:  m,
		self:     peer.Self{Host: cfg.Host, Version: peer.Version(), Identity: id},
		events:   make(chan event, 1024),
		stopped:  make(chan struct{}),
		sources:  make(map[uint64]*source),
		moving:   make(map[tcprepair.Flow]*source),
		targets:  make(map[uint64]*target),
		takers:   make(map[uint64]*taker),
		taking:   make(map[tcprepair.Flow]*target),
		peers:    make(map[string]*outgoing),
		incoming: make(map[*incoming]struct{}),
		apps:     make(map[*application]struct{}),
		queued:   make(map[*wire.Link]struct{}),
		lists:    make(map[uint64]*listing),
		absent:   make(map[string]bool),
		idle:     make(map[string]map[string]bool), listening: make(map[string]bool),
		processes: make(map[uint64]*processSource), arrivals: make(map[uint64]*processTarget), orphans: make(map[uint64]*orphan),
		ops: make(map[*operation]struct{}),

		acceptors: make(chan *cookie.Acceptor, 1),
	}
	e.setConfig(cfg)
	e.hosts = newDirectory(&e.cfg)
	e.entry = entry.New(g, e.hosts, log)
	e.entry.Guard(e)
	for _, p := range cfg.Peers {
		e.peers[p.Name] = &outgoing{e: e, name: p.Name, addr: p.Address}
	}
	return e
}

// queue sends a frame when the engine has nothing else to do, so that frames which belong together leave together.
func (e *engine) queue(l *wire.Link, id uint64, m wire.Message, fd int) error {
	if e.disturb(m.Kind(), func() { _, e.queued[l] = l.Queue(id, m, fd), struct{}{} }) {
		return nil
	}
	if err := l.Queue(id, m, fd); err != nil {
		return err
	}
	e.queued[l] = struct{}{}
	return nil
}

// flush sends what has been queued.
func (e *engine) flush() {
	for l := range e.queued {
		l.Flush()
		delete(e.queued, l)
	}
}

// post hands ev to the engine; it is dropped once the engine has stopped.
func (e *engine) post(ev event) {
	e.turn.queued()
	select {
	case e.events <- ev:
	case <-e.stopped:
	}
}

// handle is post for who has read a frame: if the engine is at rest, ev is dealt with before handle returns, which saves the change of
// goroutines that a frozen connection would wait for.
func (e *engine) handle(ev event) {
	if !e.turn.try() {
		e.post(ev)
		return
	}
	defer e.turn.end()
	ev(e)
	e.flush()
}

// ask runs f in the engine and waits for it; false means that the engine has stopped.
func (e *engine) ask(ctx context.Context, f func(e *engine)) bool {
	done := make(chan struct{})
	e.post(func(e *engine) {
		f(e)
		close(done)
	})
	select {
	case <-done:
		return true
	case <-e.stopped:
	case <-ctx.Done():
	}
	return false
}

// run is the engine's goroutine. When ctx ends, moves that have frozen nothing are given up and the others awaited
// for as long as a move may take. What still waits for an entry then is left to the host's next agent, which learns of it
// from the application (wire.Recover): the socket stays open there.
func (e *engine) run(ctx context.Context) error {
	defer close(e.stopped)
	defer e.turn.close(e.flush)
	e.findOrphans()
	tick := time.NewTicker(tickInterval)
	defer tick.Stop()
	stopping := ctx.Done()
	var limit <-chan time.Time
	e.turn.open()
	for over := false; !over; {
		select {
		case ev := <-e.events:
			e.turn.begin()
			ev(e)
			e.turn.dealt()
		case now := <-tick.C:
			e.turn.begin()
			e.tick(now)
		case <-stopping:
			e.turn.begin()
			e.turn.shut()
			stopping = nil
			e.stop()
			timer := time.NewTimer(e.endLimit())
			defer timer.Stop()
			limit = timer.C
		case <-limit:
			e.turn.begin()
			e.log.Warn("leaving moves to the next agent", "out", len(e.sources), "in", len(e.targets)+len(e.takers))
			over = true
		}
		if len(e.events) == 0 || len(e.queued) >= maxDirty {
			e.flush()
		}
		over = over || stopping == nil && len(e.sources)+len(e.targets)+len(e.takers)+len(e.processes)+len(e.arrivals) == 0
		e.turn.end()
	}
	return ctx.Err()
}

// stop gives up what has not been transferred.
func (e *engine) stop() {
	e.stopping = true
	for _, op := range slices.Collect(maps.Keys(e.ops)) {
		op.cancel(errStopping)
	}
	for _, s := range slices.Collect(maps.Values(e.sources)) {
		if s.machine.State() < migration.SourceSent {
			s.step(migration.Event{Kind: migration.Canceled, Err: errStopping})
		}
	}
	for _, t := range slices.Collect(maps.Values(e.targets)) {
		if t.machine.State() < migration.TargetCommitting {
			t.step(migration.Event{Kind: migration.Canceled, Err: errStopping})
		}
	}
	e.stopProcesses()
}

// endLimit is how long the end of the engine waits for moves.
func (e *engine) endLimit() time.Duration {
	times := e.times
	if len(e.processes)+len(e.arrivals) > 0 {
		times = e.processTimes()
	}
	return times.Limit + times.Grace
}

func (e *engine) tick(now time.Time) {
	for _, s := range slices.Collect(maps.Values(e.sources)) {
		if d := s.machine.Deadline(); !d.IsZero() && !now.Before(d) {
			s.stepAt(now, migration.Event{Kind: migration.Tick})
		}
	}
	for _, t := range slices.Collect(maps.Values(e.targets)) {
		if d := t.machine.Deadline(); !d.IsZero() && !now.Before(d) {
			t.stepAt(now, migration.Event{Kind: migration.Tick})
		}
	}
	for _, t := range slices.Collect(maps.Values(e.takers)) {
		t.tick(now)
	}
	e.tickProcesses(now)
	e.lookForListeners(now)
	e.tickInjector(now)
	for id, l := range e.lists {
		if now.After(l.deadline) {
			delete(e.lists, id)
			l.done(l.flows, l.silent+len(l.waiting))
		}
	}
	for _, op := range slices.Collect(maps.Keys(e.ops)) {
		op.tick(now)
	}
	for _, p := range e.peers {
		p.settle(now)
		p.tick(now)
	}
	for in := range e.incoming {
		in.settle(now)
	}
	e.entry.Sweep(now)
	e.processors.SetParallel(len(e.processes)+len(e.arrivals) > 0 || len(e.sources)+len(e.targets) >= manyMoves)
}

// newID returns the id of a new migration or request: random, so that it is unique across hosts and restarts.
func newID() uint64 {
	for {
		if id := rand.Uint64(); id != 0 {
			return id
		}
	}
}

// service returns the configuration of the service called name, or the one that serves the local address.
func (e *engine) service(name string, f tcprepair.Flow) (ServiceConfig, bool) {
	for _, s := range e.cfg.Services {
		if s.Name != name {
			continue
		}
		for _, a := range s.Addresses {
			if a == f.Local {
				return s, true
			}
		}
	}
	return ServiceConfig{}, false
}

// refusal turns an error into a Refuse frame.
func refusal(err error) *wire.Refuse {
	return &wire.Refuse{Code: codeOf(err), Reason: reasonOf(err)}
}
