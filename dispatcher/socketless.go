// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/rehome-net/rehome/dispatcher/peek"
	"github.com/rehome-net/rehome/dispatcher/synproxy"
	"github.com/rehome-net/rehome/handoff/cookie"
	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/handoff/reqsk"
	"github.com/rehome-net/rehome/handoff/wire"
	"github.com/rehome-net/rehome/tcprepair"
)

const (
	// trustTime is how recently a backend must have been heard of to be sent a first packet, of which no answer comes.
	trustTime = time.Second
	// secretTime is how long a secret makes cookies, overlapTime how long it is accepted before and after.
	secretTime  = 6 * time.Hour
	overlapTime = 3 * time.Minute
	// refusedTime is how long it is remembered who could not make a connection: longer than its packets are kept.
	refusedTime = 2 * time.Second
)

// socketless is the way for services whose clients speak first: their connections get no socket here, but are made by the kernel of the backend
// (package synproxy). Whatever that cannot do goes the way of sockets: other deliveries, slow, large and odd requests, backends that cannot.
type socketless struct {
	d     *Dispatcher
	proxy proxy
	stack *reqsk.Injector

	mu sync.Mutex
	// offered is what backends are told, also the one that comes into use next.
	offered cookie.Parameters
	// refused are the backends that could not make a connection that is being tried elsewhere.
	refused map[tcprepair.Flow]refusals
}

// proxy is what answers first packets: a synproxy.Proxy.
type proxy interface {
	AddService(at netip.AddrPort) error
	RemoveService(at netip.AddrPort) error
	Services() ([]netip.AddrPort, error)
	SetParameters(cookie.Parameters) error
	Return(f tcprepair.Flow) error
	Run(ctx context.Context) error
	Close() error
}

type refusals struct {
	by []*backend
	at time.Time
}

// prepareSocketless opens it if a service needs it; else it removes what a dispatcher before this one has pinned, which would go on answering.
func (d *Dispatcher) prepareSocketless(path *kernelPath) (err error) {
	pin := d.cfg.PinPath()
	if pin != "" {
		pin = filepath.Join(pin, "synproxy")
	}
	if d.cfg.socketless() {
		d.socketless, err = openSocketless(d, path, pin)
		return err
	}
	if pin != "" {
		err = os.RemoveAll(pin)
	}
	return err
}

// openSocketless loads the program, behind the gate.
func openSocketless(d *Dispatcher, path *kernelPath, pin string) (*socketless, error) {
	s := &socketless{d: d, refused: make(map[tcprepair.Flow]refusals)}
	var err error
	if s.stack, err = reqsk.Open(reqsk.Config{Logger: d.log}); err != nil {
		return nil, fmt.Errorf("socketless: %w", err)
	}
	p, err := synproxy.Open(synproxy.Config{
		Interface: d.cfg.Interfaces[0], PinPath: pin, Table: path.bpf, Stack: s.stack, Decide: s.decide, Done: s.done, Logger: d.log,
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("socketless: %w", err), s.stack.Close())
	}
	s.proxy, path.proxy = p, p
	s.offered = p.Parameters()
	return s, nil
}

func (s *socketless) close() error { return errors.Join(s.proxy.Close(), s.stack.Close()) }

// tidy removes what a process before this one has left: services that are no more.
func (s *socketless) tidy(p *plan) error {
	pinned, err := s.proxy.Services()
	for _, a := range pinned {
		if v := p.at[a]; v == nil || !v.cfg.Socketless {
			err = errors.Join(err, s.proxy.RemoveService(a))
		}
	}
	return err
}

// run works until ctx ends.
func (s *socketless) run(ctx context.Context) error {
	s.d.roster.spawn(ctx, s.renew)
	return s.proxy.Run(ctx)
}

// decide says where a request goes. It runs for every packet of requests, so it does not wait.
func (s *socketless) decide(q synproxy.Request) synproxy.Decision {
	d := s.d
	v := d.live.Load().at[q.Flow.Local]
	if v == nil {
		return synproxy.Decision{Verb: synproxy.Local}
	}
	limit := v.parser.Limit()
	var progress peek.Progress
	key, err := v.parser.Parse(&progress, q.Bytes[:min(len(q.Bytes), limit)])
	var reject *peek.RejectError
	switch {
	case err == nil:
	case !errors.As(err, &reject) && !q.Ended && len(q.Bytes) < limit:
		return synproxy.Decision{Verb: synproxy.Wait}
	default:
		return synproxy.Decision{Verb: synproxy.Local} // it is refused there, in as many words as it takes
	}
	to := v.pool(&key)
	if to == nil || to.delivery != wire.DeliverUnmodified {
		return synproxy.Decision{Verb: synproxy.Local}
	}
	if q.Returned == 0 && !d.admits(v, &key) {
		d.count.unrouted.WithLabelValues("admission").Inc()
		if text := d.sorry(&key); len(text) > 0 {
			return synproxy.Decision{Verb: synproxy.Answer, Answer: text}
		}
		return synproxy.Decision{Verb: synproxy.Reset}
	}
	if q.Returned == 0 {
		s.retry(q.Flow)
	}
	m := to.member(time.Now(), to.visit(q.Flow, &key), s.tried(q, to))
	if m == nil || !m.host.makes() || !v.reserve() {
		return synproxy.Decision{Verb: synproxy.Local} // it is tried otherwise, or refused, there
	}
	if q.Returned == 0 {
		d.count.accepted.Inc()
	}
	m.host.active.Add(1)
	d.count.handedOff(to.delivery, time.Since(q.Since))
	return synproxy.Decision{Verb: synproxy.Forward, Node: m.host.node}
}

// done takes back what decide has counted for a connection that was lost.
func (s *socketless) done(f tcprepair.Flow, to gate.Node, err error) {
	if err == nil {
		return
	}
	s.d.count.failed("lost")
	s.uncount(f, to)
}

func (s *socketless) uncount(f tcprepair.Flow, n gate.Node) {
	live := s.d.live.Load()
	if v := live.at[f.Local]; v != nil {
		lower(v.active)
	}
	for _, b := range live.hosts {
		if b.node == n {
			lower(&b.active)
			return
		}
	}
}

// retry forgets who could not make a connection that its client begins anew.
func (s *socketless) retry(f tcprepair.Flow) {
	s.mu.Lock()
	delete(s.refused, f)
	s.mu.Unlock()
}

// tried returns the members of a pool that have failed to make this connection.
func (s *socketless) tried(q synproxy.Request, p *pool) []*member {
	if q.Returned == 0 {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []*member
	for _, m := range p.members {
		if slices.Contains(s.refused[q.Flow].by, m.host) {
			all = append(all, m)
		}
	}
	return all
}

// unmade takes a connection back that a backend could not make, and tries the next. A backend says so for each packet that it could make none
// of; the first counts.
func (s *socketless) unmade(b *backend, m *wire.Unmade) {
	s.d.log.Debug("a backend could not make a connection", "flow", m.Flow, "backend", b.name, "reason", m.Reason)
	now := time.Now()
	s.mu.Lock()
	for f, r := range s.refused {
		if now.Sub(r.at) > refusedTime {
			delete(s.refused, f)
		}
	}
	by := s.refused[m.Flow].by
	if slices.Contains(by, b) {
		s.mu.Unlock()
		return
	}
	s.refused[m.Flow] = refusals{by: append(by, b), at: now}
	s.mu.Unlock()
	s.d.count.failed("refused")
	s.uncount(m.Flow, b.node)
	if err := s.proxy.Return(m.Flow); err != nil {
		// It will be asked again when the client repeats itself.
		s.d.log.Debug("cannot try another backend", "flow", m.Flow, "error", err)
	}
}

// ask returns what a backend is told.
func (s *socketless) ask(b *backend) *wire.Cookies {
	s.mu.Lock()
	p := s.offered
	s.mu.Unlock()
	m := &wire.Cookies{Secret: p.Secret[:], WindowScale: p.WindowScale}
	if p.Also != (cookie.Secret{}) {
		m.Also = p.Also[:]
	}
	for at, v := range s.d.live.Load().at {
		if v.cfg.Socketless && v.unmodifiedAt(b) {
			m.AppendEndpoint(at)
		}
	}
	return m
}

// doubt has connections go the way of sockets until backends have said that they make those of next, too.
func (s *socketless) doubt(next *plan) {
	for _, b := range next.hosts {
		b.cookies.Store(false)
	}
}

// tell tells every backend what has changed.
func (s *socketless) tell() {
	for _, b := range s.d.live.Load().hosts {
		b.tellCookies()
	}
	s.d.flush()
}

// renew changes the secret from time to time; see cookie.Parameters for the order.
func (s *socketless) renew(ctx context.Context) error {
	for {
		wait(ctx, secretTime)
		if ctx.Err() != nil {
			return nil
		}
		next, err := cookie.NewSecret()
		if err != nil {
			return err
		}
		s.mu.Lock()
		s.offered.Also = next
		s.mu.Unlock()
		s.tell()
		wait(ctx, overlapTime)
		if ctx.Err() != nil {
			return nil
		}
		s.mu.Lock()
		s.offered.Secret, s.offered.Also = next, s.offered.Secret
		p := s.offered
		s.mu.Unlock()
		if err := s.proxy.SetParameters(p); err != nil {
			return err
		}
		s.tell()
	}
}

// answer has connections to an address of a service begin here, with a socket or without.
func (d *Dispatcher) answerAt(a netip.AddrPort, socketless bool) error {
	if d.socketless == nil {
		return d.path.SetService(a, []gate.Node{0})
	}
	if socketless {
		return errors.Join(d.socketless.proxy.AddService(a), d.path.RemoveService(a))
	}
	return errors.Join(d.path.SetService(a, []gate.Node{0}), d.socketless.proxy.RemoveService(a))
}

// silenceAt ends that.
func (d *Dispatcher) silenceAt(a netip.AddrPort) error {
	err := d.path.RemoveService(a)
	if d.socketless != nil {
		err = errors.Join(err, d.socketless.proxy.RemoveService(a))
	}
	return err
}
