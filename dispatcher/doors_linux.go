// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// do has the worker's goroutine run f, and returns when it has; an error means that ctx or the worker ended first.
func (w *worker) do(ctx context.Context, f func()) error {
	done := make(chan struct{})
	select {
	case w.jobs <- func() { defer close(done); f() }:
	case <-w.gone:
		return ErrStopped
	case <-ctx.Done():
		return ctx.Err()
	}
	w.mu.Lock()
	if !w.closed() {
		w.kick()
	}
	w.mu.Unlock()
	select {
	case <-done:
		return nil
	case <-w.gone:
		return ErrStopped
	case <-ctx.Done():
		return ctx.Err()
	}
}

// ajar is the listening sockets of addresses that a reload adds, one for each worker. Connections wait in the kernel until they are
// given to the workers.
type ajar struct {
	fds map[netip.AddrPort][]int
}

// openDoors listens at the addresses of next that old has not.
func (d *Dispatcher) openDoors(next, old *plan) (_ *ajar, err error) {
	opened := &ajar{fds: make(map[netip.AddrPort][]int)}
	defer func() {
		if err != nil {
			opened.close()
		}
	}()
	have := old.places()
	for a, p := range next.places() {
		if _, ok := have[a]; ok {
			continue
		}
		for _, w := range d.workers {
			fd, err := listen(a, p.service.deferred())
			if err != nil {
				return nil, fmt.Errorf("service %s: %w", p.service.cfg.Name, err)
			}
			opened.fds[a] = append(opened.fds[a], fd)
			if err := w.watch(fd, 0); err != nil {
				return nil, fmt.Errorf("service %s: %w", p.service.cfg.Name, err)
			}
		}
	}
	return opened, nil
}

func (o *ajar) close() {
	for _, fds := range o.fds {
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
	}
}

// of returns the sockets of the worker at place i.
func (o *ajar) of(i int) map[netip.AddrPort]int {
	own := make(map[netip.AddrPort]int, len(o.fds))
	for a, fds := range o.fds {
		own[a] = fds[i]
	}
	return own
}

// rearrange gives the worker's listeners to the services that now have their addresses, closes those whose address is no more, and
// begins to accept at new ones. The worker's goroutine calls it.
func (w *worker) rearrange(places map[netip.AddrPort]place, opened map[netip.AddrPort]int) {
	for _, d := range w.doors {
		p, ok := places[d.service.cfg.Addresses[d.at]]
		if !ok {
			w.closeDoor(d)
			continue
		}
		if p.service.deferred() != d.service.deferred() {
			if err := deferAccept(d.fd, p.service.deferred()); err != nil {
				w.log.Warn("a listener waits as long for first requests as before", "service", p.service.cfg.Name, "error", err)
			}
		}
		d.service, d.at = p.service, p.at
	}
	for a, fd := range opened {
		p := places[a]
		w.doors[int32(fd)] = &door{fd: fd, service: p.service, at: p.at}
		e := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}
		if err := unix.EpollCtl(w.poll, unix.EPOLL_CTL_MOD, fd, &e); err != nil {
			w.log.Error("cannot accept connections", "service", p.service.cfg.Name, "address", a, "error", err)
		}
	}
	for _, p := range places {
		if n := p.service.parser.Limit(); n > len(w.buffer) {
			w.buffer = make([]byte, n)
		}
	}
}

// refused counts the clients that may still be reading why they are not served. The worker's goroutine calls it.
func (w *worker) refused() int {
	n := 0
	for _, p := range w.peeks {
		if p.refused {
			n++
		}
	}
	return n
}

// deferAccept says how long the kernel may keep a listener's new connections until their first bytes are there.
func deferAccept(fd int, limit time.Duration) error {
	seconds := 0
	if limit > 0 {
		seconds = max(1, int(limit/time.Second))
	}
	return os.NewSyscallError("setsockopt TCP_DEFER_ACCEPT", unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, seconds))
}
