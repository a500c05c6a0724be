// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"
)

// meetTime is how long the start and a reload wait for backends' agents. Later ones come into service when they are there.
const meetTime = time.Second

// ErrNoFile means that the dispatcher has not been told where its configuration is.
var ErrNoFile = errors.New("the dispatcher was started without a configuration file")

// SetFile says where ReloadFile, and operators' requests to reload, find the configuration. Call it before Run.
func (d *Dispatcher) SetFile(path string) { d.file = path }

// ReloadFile reads the configuration file again and carries out what it says. An error, which is logged too, means that nothing has
// changed; it is a *ConfigError, a *RestartError, or what kept a new address from being opened.
func (d *Dispatcher) ReloadFile(ctx context.Context) error {
	return d.command(ctx, func(ctx context.Context) error {
		begin := time.Now()
		d.notifyReloading()
		defer d.notify(daemon.SdNotifyReady)
		err := ErrNoFile
		var cfg Config
		if d.file != "" {
			cfg, err = LoadConfig(d.file)
			if err != nil {
				err = &ConfigError{err}
			}
		}
		if err == nil {
			err = d.reload(ctx, cfg)
		}
		if err != nil {
			d.log.Error("the configuration stays as it is", "error", err)
			return err
		}
		d.log.Info("the configuration has been reloaded", "services", len(cfg.Services), "pools", len(cfg.Pools), "took", time.Since(begin))
		return nil
	})
}

// ConfigError means that the configuration file cannot be used.
type ConfigError struct {
	// Err names the file, and the line or the key.
	Err error
}

// Error implements error.
func (e *ConfigError) Error() string { return e.Err.Error() }

// Unwrap returns Err.
func (e *ConfigError) Unwrap() error { return e.Err }

// Reload puts a validated configuration into effect, as a whole. An error means that nothing has changed. Connections that are
// being handed off keep the pool that they were given; addresses that stay keep their listeners, and those who are being looked at
// there; what operators have set of backends that stay, stays. It waits for Run.
func (d *Dispatcher) Reload(ctx context.Context, cfg Config) error {
	return d.command(ctx, func(ctx context.Context) error { return d.reload(ctx, cfg) })
}

// reload does all that can fail before it changes anything.
func (d *Dispatcher) reload(ctx context.Context, cfg Config) error {
	old := d.live.Load()
	if err := needRestart(&old.cfg, &cfg); err != nil {
		return err
	}
	next, err := d.compile(cfg, old)
	if err != nil {
		return err
	}
	if err := d.remember(next); err != nil {
		return err
	}
	opened, err := d.openDoors(next, old)
	if err != nil {
		return err
	}
	added := d.meet(ctx, next, old)
	if err := d.announceAll(next, old); err != nil {
		opened.close()
		d.roster.dismiss(added...)
		return err
	}
	d.change(ctx, next, old, opened)
	return nil
}

// announceAll is announce, for sessions' services, too.
func (d *Dispatcher) announceAll(next, old *plan) error {
	if d.sessions != nil {
		if err := d.sessions.handle(next, old); err != nil {
			return errors.Join(err, d.sessions.handle(old, next))
		}
	}
	err := d.announce(next, old)
	if err != nil && d.sessions != nil {
		err = errors.Join(err, d.sessions.handle(old, next))
	}
	return err
}

// announce makes this host the entry of the addresses of next that old has not.
func (d *Dispatcher) announce(next, old *plan) error {
	have := old.places()
	for a, p := range next.places() {
		if was, ok := have[a]; ok && was.service.cfg.Socketless == p.service.cfg.Socketless {
			continue
		}
		if err := d.answerAt(a, p.service.cfg.Socketless); err != nil {
			d.withdraw(old, next)
			d.restoreAt(have)
			return fmt.Errorf("service %s: %w", p.service.cfg.Name, err)
		}
	}
	return nil
}

// restoreAt has connections begin as the plan at work says.
func (d *Dispatcher) restoreAt(places map[netip.AddrPort]place) {
	for a, p := range places {
		if err := d.answerAt(a, p.service.cfg.Socketless); err != nil {
			d.log.Error("cannot go back to the configuration that holds", "address", a, "error", err)
		}
	}
}

// withdraw ends that for the addresses of old that next has not. Connections that were handed off go on.
func (d *Dispatcher) withdraw(next, old *plan) {
	have := next.places()
	for a, p := range old.places() {
		if _, ok := have[a]; ok {
			continue
		}
		if next.sessions[endpoint{unix.IPPROTO_TCP, a}] != nil {
			continue // the path's service is that of sessions now
		}
		if err := d.silenceAt(a); err != nil {
			d.log.Warn("the flow table still has a service that is no more", "service", p.service.cfg.Name, "address", a, "error", err)
		}
	}
}

// change puts next into effect. Nothing here fails but with the dispatcher.
func (d *Dispatcher) change(ctx context.Context, next, old *plan, opened *ajar) {
	gone := make(map[*backend]int64) // with their connections that what replaces them has been told of
	for _, b := range old.hosts {
		if d.roster.dismissed(b) {
			continue
		}
		if next.backends[b.name] != b {
			next.hosts = append(next.hosts, b)
		}
		if old.backends[b.name] == b && next.backends[b.name] != b {
			gone[b] = 0
		}
	}
	if d.socketless != nil {
		d.socketless.doubt(next)
	}
	d.live.Store(next)
	for _, s := range next.services {
		s.take()
	}
	places := next.places()
	for i, w := range d.workers {
		fds := opened.of(i)
		if err := w.do(ctx, func() { w.rearrange(places, fds) }); err != nil {
			d.log.Warn("a worker has ended during a reload", "error", err)
		}
	}
	for a, p := range old.places() {
		if now, ok := places[a]; !ok || now.service.deferred() != p.service.deferred() {
			d.outlines.forget(a)
		}
	}
	d.withdraw(next, old)
	if d.socketless != nil {
		d.socketless.tell()
	}
	d.askUnmodified(next)
	d.checks.watch(next)
	if d.management != nil {
		d.management.watch(next)
		d.management.enforce(*d.management.decision.Load())
	}
	for b := range gone {
		d.roster.lose(b)
		gone[b] = d.succeed(b, 0)
	}
	for name, b := range next.backends {
		d.locate(ctx, b, next.peers[name])
	}
	if len(gone) > 0 {
		d.roster.spawn(ctx, func(ctx context.Context) error { return d.retire(ctx, old, gone) })
	}
}

// askUnmodified asks the backends that a plan newly hands connections for unmodified servers to whether they can take them.
func (d *Dispatcher) askUnmodified(p *plan) {
	for _, b := range p.backends {
		if injects := p.injects(b); b.injects.Swap(injects) != injects && injects {
			b.tellCookies()
		}
	}
	d.flush()
}

// meet connects to the agents of backends that old has not, so that they can be given connections at once, and returns them.
func (d *Dispatcher) meet(ctx context.Context, next, old *plan) []*backend {
	var added []*backend
	for name, b := range next.backends {
		if old.backends[name] == b {
			continue
		}
		added = append(added, b)
		d.roster.hire(ctx, b)
		if old.backends[name] == nil {
			d.locate(ctx, b, next.peers[name])
		}
	}
	d.await(ctx, d.patience, func() bool {
		return !slices.ContainsFunc(added, func(b *backend) bool { return !d.roster.ready(b) })
	})
	return added
}

// retire ends the links to backends that the plan at work has no more, when no connection can be given to them through old.
func (d *Dispatcher) retire(ctx context.Context, old *plan, gone map[*backend]int64) error {
	wait(ctx, old.peekTime())
	d.settle(ctx, func(a *attempt) bool { return d.live.Load().pools[a.c.pool.cfg.Name] != a.c.pool })
	for b, told := range gone {
		d.roster.dismiss(b)
		d.succeed(b, told)
		d.log.Info("a backend is no more", "backend", b.name, "address", b.addr)
	}
	return nil
}

// succeed adds the connections of a backend to those of what stands for its host now, without those that it has been told of, and
// returns how many it knows of then.
func (d *Dispatcher) succeed(b *backend, told int64) int64 {
	n := b.active.Load()
	if now := d.backend(b.name); now != nil && now != b {
		now.active.Add(n - told)
	}
	return n
}
