// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"net/netip"
	"path/filepath"
	"slices"

	"github.com/rehome-net/rehome/handoff/cookie"
	"github.com/rehome-net/rehome/handoff/wire"
)

// acceptor makes connections for servers of this host that a dispatcher shook hands for without a socket (package cookie). The engine owns it.
type acceptor struct {
	made *cookie.Acceptor
	// from is the dispatcher whose cookies are accepted.
	from string
	// at are the services that it has.
	at []netip.AddrPort
}

// cookies does what a dispatcher asks for.
func (e *engine) cookies(in *incoming, id uint64, m *wire.Cookies) {
	if m.Unmodified {
		e.unmodifiedAsked(in)
	}
	if err := e.acceptCookies(in.name, m); err != nil {
		e.log.Warn("connections of this dispatcher need a socket there", "dispatcher", in.name, "error", err)
		in.send(id, refusal(err))
		return
	}
	in.send(id, &wire.CookiesTaken{})
}

func (e *engine) acceptCookies(from string, m *wire.Cookies) error {
	want, err := m.Endpoints()
	if err != nil {
		return wire.Refusef(e.cfg.Host, wire.CodeFailed, "%v", err)
	}
	for _, a := range want {
		if e.entries[a] != from {
			return wire.Refusef(e.cfg.Host, wire.CodeNoService, "%v is not an address whose entry is %s here", a, from)
		}
	}
	if len(want) == 0 {
		return e.endCookies(from)
	}
	p := cookie.Parameters{WindowScale: m.WindowScale}
	if len(m.Secret) != len(p.Secret) || len(m.Also) != len(p.Also) && len(m.Also) != 0 {
		return wire.Refusef(e.cfg.Host, wire.CodeFailed, "secrets of %d and %d bytes, want %d", len(m.Secret), len(m.Also), len(p.Secret))
	}
	copy(p.Secret[:], m.Secret)
	copy(p.Also[:], m.Also)
	c := &e.acceptor
	switch {
	case e.cfg.Gate.Mode == GateNFT:
		return wire.Refusef(e.cfg.Host, wire.CodeNoService, "%s", needsBPF)
	case c.made == nil:
		if err := e.openAcceptor(p); err != nil {
			return wire.Refusef(e.cfg.Host, wire.CodeFailed, "%v", err)
		}
	case c.from != from && len(c.at) > 0:
		return wire.Refusef(e.cfg.Host, wire.CodeBusy, "this host takes the cookies of %s: a host can take those of one dispatcher", c.from)
	default:
		if err := c.made.SetParameters(p); err != nil {
			return wire.Refusef(e.cfg.Host, wire.CodeFailed, "%v", err)
		}
	}
	c.from = from
	return c.serve(want)
}

// endCookies makes no connections for a dispatcher any more: neither those that it has asked for, nor those that an agent before
// this one has pinned.
func (e *engine) endCookies(from string) error {
	c := &e.acceptor
	gone := func(a netip.AddrPort) bool { return e.entries[a] == from || e.entries[a] == "" }
	var err error
	if c.made != nil {
		err = c.serve(slices.DeleteFunc(slices.Clone(c.at), gone))
	} else if pin := e.acceptorPin(); pin != "" {
		err = cookie.Withdraw(pin, gone)
	}
	if err != nil {
		return wire.Refusef(e.cfg.Host, wire.CodeFailed, "%v", err)
	}
	return nil
}

// acceptorPin is where the acceptor's program and maps are kept; empty when they are not.
func (e *engine) acceptorPin() string {
	pin := e.cfg.pinPath()
	if pin == "" {
		return ""
	}
	return filepath.Join(filepath.Dir(pin), filepath.Base(pin)+"-cookie")
}

// openAcceptor loads the program. What a former agent has pinned goes on.
func (e *engine) openAcceptor(p cookie.Parameters) error {
	if len(e.cfg.Interfaces) != 1 {
		return errors.New("it needs a host with one interface")
	}
	made, err := cookie.Open(cookie.Config{Interface: e.cfg.Interfaces[0], PinPath: e.acceptorPin(), Parameters: p, Logger: e.log})
	if err != nil {
		return err
	}
	// What was pinned may have services that are no more.
	if e.acceptor.at, err = made.Services(); err != nil {
		return errors.Join(err, made.Close())
	}
	e.acceptor.made = made
	e.acceptors <- made
	return nil
}

// serve makes connections for these addresses and no others.
func (c *acceptor) serve(want []netip.AddrPort) error {
	for _, a := range c.at {
		if !slices.Contains(want, a) {
			if err := c.made.RemoveService(a); err != nil {
				return err
			}
		}
	}
	for _, a := range want {
		if err := c.made.AddService(a); err != nil {
			return err
		}
	}
	c.at = want
	return nil
}

// withdrawCookies ends it for addresses that are another entry's, or nobody's, with a new configuration.
func (e *engine) withdrawCookies() {
	c := &e.acceptor
	if c.made == nil {
		return
	}
	keep := slices.DeleteFunc(slices.Clone(c.at), func(a netip.AddrPort) bool { return e.entries[a] != c.from })
	if err := c.serve(keep); err != nil {
		e.log.Error("connections are still made for an address that is no more", "error", err)
	}
}

// runAcceptor passes on which connections could not be made, from the time that there is an acceptor until ctx ends.
func (e *engine) runAcceptor(ctx context.Context) error {
	var made *cookie.Acceptor
	select {
	case made = <-e.acceptors:
	case <-ctx.Done():
		return nil
	}
	err := made.Run(ctx, func(r cookie.Report) {
		e.post(func(e *engine) { e.unmade(r) })
	})
	return errors.Join(err, made.Close())
}

// unmade tells the dispatcher, which gives the connection to another server.
func (e *engine) unmade(r cookie.Report) {
	e.log.Debug("could not make a connection", "flow", r.Flow, "reason", r.Reason)
	e.counters.refused++
	var to *incoming
	for in := range e.incoming {
		if in.name == e.acceptor.from && (to == nil || in.heard.After(to.heard)) {
			to = in
		}
	}
	if to != nil {
		to.send(0, &wire.Unmade{Flow: r.Flow, Reason: r.Reason.String()})
	}
}
