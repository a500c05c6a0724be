// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/rehome-net/rehome/handoff/migration"
	"github.com/rehome-net/rehome/handoff/neighbour"
)

const (
	// meetTime is how long a reload waits for new peers' link-layer addresses. Later ones are learned when they are there.
	meetTime = time.Second
	meetTick = 20 * time.Millisecond
)

// review looks for what speaks against a configuration, and returns the hosts that it adds.
func (e *engine) review(cfg *Config) (added []neighbour.Host, err error) {
	if e.stopping {
		return nil, ErrStopped
	}
	if err := needRestart(&e.cfg, cfg); err != nil {
		return nil, err
	}
	if err := e.hosts.check(cfg.Peers); err != nil {
		return nil, err
	}
	for _, p := range cfg.Peers {
		if e.peer(p.Name) == nil {
			added = append(added, p.Host())
		}
	}
	return added, nil
}

// meet waits until new hosts stand in the gate's table, so that new connections can be sent there at once. It is called outside
// the engine's goroutine.
func (e *engine) meet(hosts []neighbour.Host) {
	for deadline := time.Now().Add(meetTime); len(hosts) > 0; time.Sleep(meetTick) {
		hosts = slices.DeleteFunc(hosts, func(h neighbour.Host) bool { return neighbour.Locate(e.gate, h) == nil })
		if len(hosts) > 0 && time.Now().After(deadline) {
			e.log.Warn("new peers' link-layer addresses are not known yet", "first", hosts[0].Name, "peers", len(hosts))
			return
		}
	}
}

// reload does all that can fail before it changes anything.
func (e *engine) reload(cfg Config) error {
	if _, err := e.review(&cfg); err != nil {
		return err
	}
	if err := e.watchServices(&cfg); err != nil {
		e.restore(&cfg)
		return err
	}
	if err := e.announce(&cfg); err != nil {
		e.restore(&cfg)
		return err
	}
	e.change(time.Now(), cfg)
	return nil
}

// watchServices has ends of the services' connections reported.
func (e *engine) watchServices(cfg *Config) error {
	if e.watched == nil {
		return nil
	}
	return e.watched.SetServices(cfg.addresses())
}

// announce makes this host the entry of a configuration's services.
func (e *engine) announce(cfg *Config) error {
	for _, s := range cfg.Services {
		if s.Entry != cfg.Host {
			continue
		}
		nodes := e.serversOf(cfg, s)
		if e.awaitsWord(s, nodes) {
			continue
		}
		for _, a := range s.Addresses {
			if err := e.gate.SetService(a, nodes); err != nil {
				return fmt.Errorf("service %s: %w", s.Name, err)
			}
		}
	}
	return nil
}

// restore undoes announce and watchServices.
func (e *engine) restore(refused *Config) {
	if err := errors.Join(e.watchServices(&e.cfg), e.announce(&e.cfg)); err != nil {
		e.log.Error("cannot go back to the configuration that holds", "error", err)
	}
	e.withdraw(refused.entryOf(), &e.cfg)
}

// withdraw ends that this host is the entry of addresses which are not cfg's. Connections keep their servers.
func (e *engine) withdraw(addresses []netip.AddrPort, cfg *Config) {
	keep := cfg.entryOf()
	for _, a := range addresses {
		if slices.Contains(keep, a) {
			continue
		}
		if err := e.gate.RemoveService(a); err != nil {
			e.log.Warn("the flow table still has a service that is no more", "address", a, "error", err)
		}
	}
}

// withdrawPinned does so for what an agent before this one has left in a pinned table.
func (e *engine) withdrawPinned() {
	pinned, err := e.gate.Services()
	if err != nil {
		e.log.Warn("cannot look for services of a former configuration", "error", err)
	}
	e.withdraw(pinned, &e.cfg)
}

// change puts a configuration into effect. Nothing here fails.
func (e *engine) change(now time.Time, cfg Config) {
	old := e.cfg
	told := make(map[string]bool)
	for name := range e.peers {
		told[name] = e.entryFor(name)
	}
	e.hosts.learn(cfg.Peers)
	e.setConfig(cfg)
	e.withdraw(old.entryOf(), &cfg)
	e.withdrawCookies()
	// What began before is over by then, or waits for an entry: that goes on over another connection.
	patience := now.Add(max(e.times.Limit, old.times().Limit) + e.times.Grace)
	e.changePeers(patience)
	for name := range e.peers {
		if e.entryFor(name) && !told[name] {
			e.peers[name].tellPresence()
		}
	}
}

// changePeers has connections to other hosts follow the configuration.
func (e *engine) changePeers(patience time.Time) {
	there := make(map[string]bool, len(e.cfg.Peers))
	for _, c := range e.cfg.Peers {
		there[c.Name] = true
		p := e.peers[c.Name]
		if p == nil {
			e.peers[c.Name] = &outgoing{e: e, name: c.Name, addr: c.Address}
			continue
		}
		p.retired = false
		if p.addr != c.Address {
			p.addr = c.Address
			if p.link != nil {
				p.closeBy = patience
			}
		}
	}
	for name, p := range e.peers {
		p.retired = p.retired || !there[name]
	}
	for in := range e.incoming {
		in.closeBy = time.Time{}
		if !there[in.name] {
			in.closeBy = patience
		}
	}
	for name := range e.absent {
		if !there[name] {
			delete(e.absent, name)
		}
	}
}

// setConfig makes cfg the configuration.
func (e *engine) setConfig(cfg Config) {
	e.cfg, e.times, e.entries = cfg, cfg.times(), cfg.entries()
	next := &shared{cfg: cfg, replaced: make(chan struct{})}
	if last := e.shared.Swap(next); last != nil {
		close(last.replaced)
	}
}

// shared is the configuration for goroutines other than the engine's.
type shared struct {
	cfg      Config // not to be changed
	replaced chan struct{}
}

func (c *Config) times() migration.Config {
	return migration.Config{Limit: c.Migration.Limit}.WithDefaults()
}

// addresses returns those of all services.
func (c *Config) addresses() (all []netip.AddrPort) {
	for _, s := range c.Services {
		all = append(all, s.Addresses...)
	}
	return all
}

// entryOf returns the addresses that this host is the entry of.
func (c *Config) entryOf() (all []netip.AddrPort) {
	for _, s := range c.Services {
		if s.Entry == c.Host {
			all = append(all, s.Addresses...)
		}
	}
	return all
}
