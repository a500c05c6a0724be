// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"context"
	"errors"
	"net/netip"
	"time"
)

// ErrNotServed means that a front of this kind cannot serve a service.
var ErrNotServed = errors.New("this front does not serve it")

// Front is what a client of a Farm talks to: a proxy or dispatcher on FrontHost, or nothing. A Front is used with one farm at a
// time, and fronts that hold the virtual addresses one after the other.
type Front interface {
	// Name names the front in reports: a word, with hyphens.
	Name() string
	// Programs are what it needs on the machine.
	Programs() []string
	// Start starts it and returns when it answers.
	Start(ctx context.Context, f *Farm) error
	// Stop ends it in order. Stopping what has not been started is no error.
	Stop() error
	// Target returns where a client of f reaches a service, by IPv4 or IPv6. ErrNotServed if it does not.
	Target(f *Farm, s Service, v6 bool) (netip.AddrPort, error)
}

// FrontDaemon is a Front that is a process.
type FrontDaemon interface {
	Front
	// Processes returns the front's processes that live now.
	Processes() ([]int, error)
	// Kill ends all of them as a crash would. Start starts it again.
	Kill() error
}

// Route sends the HTTP requests for a host name to a service.
type Route struct {
	Host    string
	Service Service
}

// FrontReloader is a Front whose routes can be changed while it works.
type FrontReloader interface {
	FrontDaemon
	// Reload replaces the routes by host name, of which there are none at Start, and returns when the front has been told,
	// which may be before it has done so.
	Reload(ctx context.Context, f *Farm, routes []Route) error
}

// Direct is no front: the client talks to the server's own address.
func Direct() Front { return direct{} }

type direct struct{}

func (direct) Name() string                       { return "direct" }
func (direct) Programs() []string                 { return nil }
func (direct) Start(context.Context, *Farm) error { return nil }
func (direct) Stop() error                        { return nil }

func (direct) Target(f *Farm, s Service, v6 bool) (netip.AddrPort, error) {
	h := f.host(s.Host())
	return netip.AddrPortFrom(family([]netip.Addr{h.Addr4(), h.Addr6()}, v6), s.Port()), nil
}

// proxy is a Front that is a program on FrontHost with the virtual addresses.
type proxy struct {
	name    string
	program string // its command, and its log's name
	command func(f *Farm) []string
	// write writes the configuration, for routes by host name.
	write func(f *Farm, routes []Route) error
	// serves are the services that this kind can serve.
	serves []Service
	// reload tells the process to read the configuration again; nil if it cannot.
	reload func(pid int) error

	running *program
}

func (p *proxy) Name() string       { return p.name }
func (p *proxy) Programs() []string { return []string{p.program} }

func (p *proxy) Start(ctx context.Context, f *Farm) error {
	if err := p.write(f, nil); err != nil {
		return err
	}
	var err error
	if p.running, err = f.launch(ctx, FrontHost, p.name, p.command(f)...); err != nil {
		return err
	}
	return p.answers(ctx, f)
}

// answers waits until the front serves all that it can.
func (p *proxy) answers(ctx context.Context, f *Farm) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for _, s := range p.serves {
		err := f.await(ctx, p.running.daemon, func(ctx context.Context) error { return f.Ask(ctx, p, s) })
		if err != nil {
			return errors.Join(err, p.Stop())
		}
	}
	return nil
}

func (p *proxy) Stop() error {
	if p.running == nil {
		return nil
	}
	defer func() { p.running = nil }()
	return p.running.stop()
}

func (p *proxy) Kill() error {
	if p.running == nil {
		return errors.New(p.name + " has not been started")
	}
	defer func() { p.running = nil }()
	return p.running.kill()
}

func (p *proxy) Processes() ([]int, error) {
	if p.running == nil {
		return nil, errors.New(p.name + " has not been started")
	}
	return p.running.processes()
}

func (p *proxy) Reload(_ context.Context, f *Farm, routes []Route) error {
	if p.running == nil {
		return errors.New(p.name + " has not been started")
	}
	if err := p.write(f, routes); err != nil {
		return err
	}
	return p.reload(p.running.cmd.Process.Pid)
}

func (p *proxy) Target(f *Farm, s Service, v6 bool) (netip.AddrPort, error) {
	for _, have := range p.serves {
		if have == s {
			return netip.AddrPortFrom(family(f.Lab.Topology().VIPs, v6), s.Port()), nil
		}
	}
	return netip.AddrPort{}, ErrNotServed
}

// askTimeout bounds one question to a service.
const askTimeout = 5 * time.Second
