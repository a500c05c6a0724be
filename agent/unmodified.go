// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/rehome-net/rehome/handoff/reqsk"
	"github.com/rehome-net/rehome/handoff/wire"
	"github.com/rehome-net/rehome/tcprepair"
)

// needsBPF is why unmodified servers get no connections on a host without BPF.
const needsBPF = "unmodified servers need BPF, and gate.mode is nft here: use delivery linked or fd"

// injectAgain is how long it is remembered that this host cannot make connections for unmodified servers, and how often it is tried again
// while a dispatcher waits for it: an operator may have changed a sysctl.
const injectAgain = 5 * time.Second

// injector makes connections for servers that know nothing of rehome: a reqsk.Injector.
type injector interface {
	Inject(s *tcprepair.Snapshot) error
	Close() error
}

// injecting is whether this host can do that. It is found out when a dispatcher asks, or hands a connection over, and beside the engine:
// loading the programs takes longer than a frozen connection should wait. The zero value knows nothing; the engine owns it.
type injecting struct {
	made injector
	// err is why the last try failed, and again when another may be made.
	err   error
	again time.Time
	// opening means that a try is under way, and waiting who wants to know how it ends.
	opening bool
	waiting []func()
	// handoffs are those that wait, by their ids, and who sent them.
	handoffs map[uint64]*incoming
	// open is openInjector but in tests.
	open func(*engine) (injector, error)
}

func openInjector(e *engine) (injector, error) { return reqsk.Open(reqsk.Config{Logger: e.log}) }

// known reports whether there is an answer that holds now.
func (i *injecting) known(now time.Time) bool {
	return i.made != nil || i.err != nil && now.Before(i.again)
}

// prepareInjector finds out, and calls then in the engine, perhaps at once. What it has found holds until injectAgain has passed.
func (e *engine) prepareInjector(now time.Time, then func()) {
	i := &e.inject
	if i.made == nil && e.cfg.Gate.Mode == GateNFT {
		i.err, i.again = errors.New(needsBPF), now.Add(injectAgain)
	}
	if !i.opening && i.known(now) {
		then()
		return
	}
	i.waiting = append(i.waiting, then)
	if i.opening {
		return
	}
	i.opening = true
	open := i.open
	if open == nil {
		open = openInjector
	}
	go func() {
		made, err := open(e)
		if !e.ask(context.Background(), func(e *engine) { e.injectorOpened(made, err) }) && err == nil {
			_ = made.Close() // the engine has ended
		}
	}()
}

// injectorOpened takes in how a try ended.
func (e *engine) injectorOpened(made injector, err error) {
	i := &e.inject
	changed := (err == nil) != (i.err == nil) || err != nil && err.Error() != i.err.Error()
	i.opening, i.err, i.again = false, err, time.Now().Add(injectAgain)
	if err == nil {
		i.made = made
	}
	if changed && err != nil {
		e.log.Warn("unmodified servers of this host get no connections from dispatchers; linked ones and descriptors do", "error", err)
	}
	waiting := i.waiting
	i.waiting = nil
	for _, then := range waiting {
		then()
	}
	if changed {
		for in := range e.incoming {
			e.tellUnmodified(in)
		}
	}
}

// unmodifiedAsked answers a dispatcher that wants to know, now and when it changes.
func (e *engine) unmodifiedAsked(in *incoming) {
	in.unmodified, in.told = true, nil
	e.prepareInjector(time.Now(), func() { e.tellUnmodified(in) })
}

func (e *engine) tellUnmodified(in *incoming) {
	if _, ok := e.incoming[in]; !ok || !in.unmodified {
		return
	}
	m := &wire.Unmodified{}
	if err := e.inject.err; err != nil {
		m.Unable = err.Error()
	}
	if in.told != nil && *in.told == m.Unable {
		return
	}
	in.told = &m.Unable
	in.send(0, m)
}

// tickInjector tries again while a dispatcher waits for it.
func (e *engine) tickInjector(now time.Time) {
	i := &e.inject
	if i.err == nil || i.opening || e.cfg.Gate.Mode == GateNFT || i.known(now) {
		return
	}
	for in := range e.incoming {
		if in.unmodified {
			e.prepareInjector(now, func() {})
			return
		}
	}
}

// awaitInjector has a handoff wait until it is known whether it can be carried out, and reports whether it is dealt with.
func (e *engine) awaitInjector(in *incoming, id uint64, m *wire.Handoff) bool {
	now := time.Now()
	if m.Delivery != wire.DeliverUnmodified || !e.inject.opening && e.inject.known(now) || len(e.inject.waiting) >= e.cfg.Migration.Incoming {
		return false
	}
	if e.inject.handoffs == nil {
		e.inject.handoffs = make(map[uint64]*incoming)
	}
	e.inject.handoffs[id] = in
	e.prepareInjector(now, func() {
		if !e.stopWaiting(in, id) {
			return // it was canceled
		}
		if _, ok := e.incoming[in]; !ok {
			return
		}
		if m.Limit > 0 {
			m.Limit = max(m.Limit-time.Since(now), 1)
		}
		e.handedOff(in, id, m)
	})
	return true
}

// stopWaiting reports whether a handoff waits for the injector, which it does no more.
func (e *engine) stopWaiting(in *incoming, id uint64) bool {
	waits := e.inject.handoffs[id] == in
	if waits {
		delete(e.inject.handoffs, id)
	}
	return waits
}

// injector returns what makes connections for unmodified servers, or why there is none.
func (e *engine) injector() (injector, error) {
	switch i := &e.inject; {
	case i.made != nil:
		return i.made, nil
	case i.err != nil:
		return nil, i.err
	}
	return nil, errOpening
}

// errOpening means that more connections wait for the injector than may.
var errOpening = errors.New("this host is only finding out whether it can")

// sayUnmodified logs at the start of an agent what unmodified servers lack here. It is no fault where there are none.
func (a *Agent) sayUnmodified() {
	if a.cfg.Gate.Mode == GateNFT || len(a.cfg.Services) == 0 {
		return
	}
	var missing []string
	for _, f := range reqsk.Probe() {
		if f.Required && !f.OK {
			missing = append(missing, f.Name+": "+f.Detail)
		}
	}
	if len(missing) > 0 {
		a.log.Info("unmodified servers of this host can get no connections from dispatchers", "missing", strings.Join(missing, "; "))
	}
}

// quickRequest is how long a request may be, in bytes, for every server's socket to have room for it.
const quickRequest = 16 << 10

// unmodified gives the connection to whoever listens at the service's address, through its accept queue.
type unmodified struct {
	e        *engine
	injector injector
	snapshot *tcprepair.Snapshot
}

func (u *unmodified) prepare(s *tcprepair.Snapshot) error {
	u.snapshot = s
	return nil
}

// deliver injects; in the background when the request is so long that the server may have to read some of it first.
func (u *unmodified) deliver(done func(error)) {
	if len(u.snapshot.Received) <= quickRequest {
		done(u.injector.Inject(u.snapshot))
		return
	}
	go func() {
		err := u.injector.Inject(u.snapshot)
		u.e.post(func(*engine) { done(err) })
	}()
}

func (u *unmodified) discard() {}
