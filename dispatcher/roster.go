// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"context"
	"errors"
	"net"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/rehome-net/rehome/handoff/neighbour"
)

// roster is the backends that goroutines work for.
type roster struct {
	group *errgroup.Group

	mu     sync.Mutex
	duties map[*backend]*duty
}

// duty is what is done for one backend.
type duty struct {
	end  context.CancelFunc // of its link
	lose context.CancelFunc // of the search for its link-layer address; nil before it begins
	// located means that the search has found it.
	located atomic.Bool
}

func newRoster(group *errgroup.Group) *roster {
	return &roster{group: group, duties: make(map[*backend]*duty)}
}

// spawn runs f; an error ends the dispatcher.
func (r *roster) spawn(ctx context.Context, f func(context.Context) error) {
	r.group.Go(func() error {
		if err := f(ctx); err != nil && !errors.Is(err, context.Canceled) {
			return err
		}
		return nil
	})
}

// hire connects to a backend until it is dismissed.
func (r *roster) hire(ctx context.Context, b *backend) {
	ctx, cancel := context.WithCancel(ctx)
	r.mu.Lock()
	r.duties[b] = &duty{end: cancel}
	r.mu.Unlock()
	r.spawn(ctx, b.run)
	r.spawn(ctx, b.watch)
}

// dismiss ends everything for backends.
func (r *roster) dismiss(backends ...*backend) {
	for _, b := range backends {
		r.lose(b)
		r.mu.Lock()
		j := r.duties[b]
		delete(r.duties, b)
		r.mu.Unlock()
		if j != nil {
			j.end()
		}
	}
}

// dismissed reports whether nothing is done for a backend.
func (r *roster) dismissed(b *backend) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.duties[b] == nil
}

// ready reports whether a backend can be asked, and its packets can be sent to it. Of one whose address is not searched for the
// packet path knows from before.
func (r *roster) ready(b *backend) bool {
	r.mu.Lock()
	j := r.duties[b]
	unknown := j == nil || j.lose != nil && !j.located.Load()
	r.mu.Unlock()
	return !unknown && b.up()
}

// serves reports whether every pool of a plan has a backend that is ready.
func (r *roster) serves(p *plan) bool {
	for _, o := range p.pools {
		if !slices.ContainsFunc(o.members, func(m *member) bool { return r.ready(m.host) }) {
			return false
		}
	}
	return true
}

// lose ends the search for a backend's link-layer address. What was found stays in the packet path's table.
func (r *roster) lose(b *backend) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if j := r.duties[b]; j != nil && j.lose != nil {
		j.lose()
	}
}

// locate keeps the packet path's table of hosts up to date about a backend, unless that is done already.
func (d *Dispatcher) locate(ctx context.Context, b *backend, peer PeerConfig) {
	d.roster.mu.Lock()
	defer d.roster.mu.Unlock()
	j := d.roster.duties[b]
	if j == nil || j.lose != nil {
		return
	}
	ctx, j.lose = context.WithCancel(ctx)
	d.roster.spawn(ctx, func(ctx context.Context) error {
		return neighbour.Watch(ctx, d.path, []neighbour.Host{peer.Host()}, func(neighbour.Host, net.HardwareAddr) { j.located.Store(true) }, d.log)
	})
}
