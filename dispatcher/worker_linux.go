// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/dispatcher/peek"
	"github.com/rehome-net/rehome/tcprepair"
)

const (
	// pollTime is how long a worker with connections sleeps at most, and so how precisely it keeps their deadlines; idleTime is
	// how long one without does.
	pollTime = 100 * time.Millisecond
	idleTime = time.Minute
	// lingerTime is how long a refused client may take to read why.
	lingerTime = time.Second
	// quietTime is how long a client of HTTP/2 may be silent after its settings before it is taken for one that waits for the
	// server's.
	quietTime = 50 * time.Millisecond
	// acceptBatch is how many connections a worker accepts before it looks at others again.
	acceptBatch = 64
	// restAfter is the pause when the process or the system has no descriptors left.
	restAfter = 10 * time.Millisecond
)

// worker accepts connections and looks at their first bytes. One goroutine owns it; what it has found out about a connection goes to
// found, and the connection with it.
type worker struct {
	poll   int // epoll
	wake   int // eventfd: there are jobs
	log    *slog.Logger
	count  *counters
	buffer []byte
	events []unix.EpollEvent
	doors  map[int32]*door
	peeks  map[int32]*peeking
	jobs   chan func()
	// found takes a connection whose first bytes have been read.
	found func(*peeking, peek.Key)
	// flush sends what the connections found have led to.
	flush func()

	// gone is closed when the worker is, with mu held: wake is somebody else's descriptor from then on.
	mu   sync.Mutex
	gone chan struct{}
}

// door is a listening socket of one worker.
type door struct {
	fd      int
	service *service
	at      int // of the service's addresses
}

// peeking is a connection whose first request is not known yet, or one that has been refused and is being closed.
type peeking struct {
	fd       int
	service  *service
	flow     tcprepair.Flow
	progress peek.Progress
	accepted time.Time
	deadline time.Time
	waits    bool // it is in the epoll set
	refused  bool
}

func newWorker(log *slog.Logger, count *counters, found func(*peeking, peek.Key), flush func()) (*worker, error) {
	poll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll: %w", err)
	}
	wake, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		_ = unix.Close(poll)
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	w := &worker{
		poll: poll, wake: wake, log: log, count: count, found: found, flush: flush, events: make([]unix.EpollEvent, 256),
		doors: make(map[int32]*door), peeks: make(map[int32]*peeking), jobs: make(chan func(), 1024), gone: make(chan struct{}),
	}
	if err := w.watch(wake, unix.EPOLLIN|unix.EPOLLET); err != nil {
		w.close()
		return nil, err
	}
	return w, nil
}

// post has the worker's goroutine run f soon, or close; false means that it has too much to do, or is closed.
func (w *worker) post(f func()) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed() {
		return false
	}
	select {
	case w.jobs <- f:
		w.kick()
		return true
	default:
		return false
	}
}

func (w *worker) closed() bool {
	select {
	case <-w.gone:
		return true
	default:
		return false
	}
}

// kick ends the worker's wait. It is called with mu held, and not after close.
func (w *worker) kick() { _, _ = unix.Write(w.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0}) }

// adopt refuses a connection that another goroutine has found to be served by nobody.
func (w *worker) adopt(p *peeking, text []byte) {
	p.service.peeking.Add(1)
	if !w.post(func() { w.refuse(time.Now(), p, text) }) {
		answer(p.fd, text)
		w.drop(p)
	}
}

// open listens at an address of a service.
func (w *worker) open(s *service, at int) error {
	fd, err := listen(s.cfg.Addresses[at], s.deferred())
	if err != nil {
		return err
	}
	d := &door{fd: fd, service: s, at: at}
	if err := w.watch(fd, unix.EPOLLIN); err != nil {
		_ = unix.Close(fd)
		return err
	}
	w.doors[int32(fd)] = d
	if n := s.parser.Limit(); n > len(w.buffer) {
		w.buffer = make([]byte, n)
	}
	return nil
}

func (w *worker) watch(fd int, events uint32) error {
	e := unix.EpollEvent{Events: events, Fd: int32(fd)}
	if err := unix.EpollCtl(w.poll, unix.EPOLL_CTL_ADD, fd, &e); err != nil {
		return fmt.Errorf("watch a socket: %w", err)
	}
	return nil
}

// run serves until ctx ends, and then closes everything that it still has.
func (w *worker) run(ctx context.Context) error {
	defer w.close()
	defer context.AfterFunc(ctx, func() { w.post(func() {}) })()
	swept := time.Now()
	for ctx.Err() == nil {
		sleep := idleTime
		if len(w.peeks) > 0 {
			sleep = pollTime
		}
		n, err := unix.EpollWait(w.poll, w.events, int(sleep/time.Millisecond))
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for connections: %w", err)
		}
		now := time.Now()
		for _, e := range w.events[:max(n, 0)] {
			if d := w.doors[e.Fd]; d != nil {
				w.accept(now, d)
			} else if p := w.peeks[e.Fd]; p != nil {
				w.look(now, p, e.Events&unix.EPOLLRDHUP != 0)
			}
		}
		w.flush()
		w.work()
		if now.Sub(swept) >= pollTime {
			swept = now
			w.sweep(now)
		}
	}
	return nil
}

// work does what has been posted.
func (w *worker) work() {
	for {
		select {
		case job := <-w.jobs:
			job()
		default:
			return
		}
	}
}

func (w *worker) accept(now time.Time, d *door) {
	for range acceptBatch {
		fd, flow, err := accept(d.fd, d.service.cfg.Addresses[d.at])
		switch {
		case errors.Is(err, unix.EAGAIN):
			return
		case err != nil:
			w.log.Warn("cannot accept a connection", "service", d.service.cfg.Name, "error", err)
			time.Sleep(restAfter)
			return
		}
		s := d.service
		if s.peeking.Add(1) > int64(s.cfg.Limits.Peeking) {
			s.peeking.Add(-1)
			w.count.crowded.Inc()
			answer(fd, nil)
			_ = unix.Close(fd)
			continue
		}
		w.count.accepted.Inc()
		w.look(now, &peeking{fd: fd, service: s, flow: flow, accepted: now, deadline: now.Add(s.cfg.Limits.PeekTime)}, false)
	}
}

// look reads what there is of a connection's first bytes; closed means that the client had no more to send before that.
func (w *worker) look(now time.Time, p *peeking, closed bool) {
	if p.refused {
		if !swallow(p.fd, w.buffer) {
			w.end(p)
		}
		return
	}
	n := 0
	if p.service.peeks() {
		var err error
		n, err = peekInto(p.fd, w.buffer[:p.service.parser.Limit()])
		if err != nil && !errors.Is(err, unix.EAGAIN) || err == nil && n == 0 {
			w.count.left.Inc()
			w.end(p)
			return
		}
		n = max(n, 0)
	}
	key, err := p.service.parser.Parse(&p.progress, w.buffer[:n])
	var reject *peek.RejectError
	switch {
	case err == nil:
		w.forget(p)
		w.found(p, key)
	case errors.As(err, &reject):
		w.count.rejected.WithLabelValues(reject.Reason.String()).Inc()
		w.refuse(now, p, reject.Answer())
	case closed: // the rest will never come, and must not keep a place until its time is over
		w.count.left.Inc()
		w.refuse(now, p, peek.Malformed.Answer(p.service.mode))
	default:
		if quiet := now.Add(quietTime); p.progress.AwaitsServer() && quiet.Before(p.deadline) {
			p.deadline = quiet
		}
		w.wait(p)
	}
}

// wait keeps a connection until more bytes come. Events come with new bytes only: those that have been peeked at are still there.
func (w *worker) wait(p *peeking) {
	if p.waits {
		return
	}
	if err := w.watch(p.fd, unix.EPOLLIN|unix.EPOLLRDHUP|unix.EPOLLET); err != nil {
		w.log.Warn("cannot wait for a request", "flow", p.flow, "error", err)
		w.end(p)
		return
	}
	p.waits = true
	w.peeks[int32(p.fd)] = p
}

// forget hands a connection on.
func (w *worker) forget(p *peeking) {
	if p.waits {
		delete(w.peeks, int32(p.fd))
		_ = unix.EpollCtl(w.poll, unix.EPOLL_CTL_DEL, p.fd, nil)
		p.waits = false
	}
	p.service.peeking.Add(-1)
}

// refuse tells the client why and closes when it has read it.
func (w *worker) refuse(now time.Time, p *peeking, text []byte) {
	p.refused = true
	if !answer(p.fd, text) || !swallow(p.fd, w.buffer) {
		w.end(p)
		return
	}
	p.deadline = now.Add(lingerTime)
	w.wait(p)
}

func (w *worker) end(p *peeking) {
	w.forget(p)
	w.discard(p)
}

// drop is end for a connection that the worker does not know.
func (w *worker) drop(p *peeking) {
	p.service.peeking.Add(-1)
	w.discard(p)
}

func (w *worker) discard(p *peeking) {
	_ = unix.Close(p.fd)
	p.service.ended(p.flow)
}

// sweep ends what has taken too long.
func (w *worker) sweep(now time.Time) {
	for _, p := range w.peeks {
		switch {
		case now.Before(p.deadline):
		case p.refused:
			w.end(p)
		case p.progress.AwaitsServer() && p.service.hasDefault():
			// A client that waits for the server's word shows no request: its service's default has it (peek.Progress).
			w.forget(p)
			w.found(p, peek.Key{Mode: peek.HTTP2})
		default:
			w.count.slow.Inc()
			var text []byte
			if n, err := peekInto(p.fd, w.buffer[:1]); err == nil && n > 0 {
				text = peek.TimedOut.Answer(p.service.mode)
			}
			w.refuse(now, p, text)
		}
	}
}

// closeDoor ends a listener; what waits in its queue is accepted first.
func (w *worker) closeDoor(d *door) {
	w.accept(time.Now(), d)
	delete(w.doors, int32(d.fd))
	_ = unix.Close(d.fd)
}

// close gives everything back. What was posted before is done first: connections may come with it.
func (w *worker) close() {
	w.mu.Lock()
	close(w.gone)
	w.mu.Unlock()
	w.work()
	for _, d := range w.doors {
		w.closeDoor(d)
	}
	for _, p := range w.peeks {
		_ = unix.Close(p.fd)
	}
	_ = unix.Close(w.wake)
	_ = unix.Close(w.poll)
}
