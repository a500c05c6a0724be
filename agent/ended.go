// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"time"

	"github.com/rehome-net/rehome/handoff/sockops"
	"github.com/rehome-net/rehome/handoff/wire"
	"github.com/rehome-net/rehome/tcprepair"
)

const (
	// endDelay is how much later than its end a flow is forgotten at the earliest, and endQuiet for how long its entry must have seen
	// nothing of it then. A client may use its port again at once, and its new connection have the same owner and epoch: this host
	// looks after endDelay whether it has come here, and the entry sees one that is younger than this look by its packets.
	endDelay = time.Second
	endQuiet = endDelay / 2
	// endPause is between two looks at what has ended, so that many ends make one batch. After a failed look it doubles, up to longestEndPause.
	endPause        = 10 * time.Millisecond
	longestEndPause = 10 * time.Second
	// maxLingering bounds the flows that wait for their last packets, about 10 MB. Beyond it the oldest are given up early, as
	// the kernel does with its own beyond net.ipv4.tcp_max_tw_buckets.
	maxLingering = 1 << 17
	// maxEndedBacklog bounds what waits to be written to an entry, in bytes: an end is not worth more.
	maxEndedBacklog = 1 << 20
)

// endSource is a sockops.Watcher, or a poll where there is no BPF.
type endSource interface {
	Read([]sockops.End) ([]sockops.End, error)
	Lost() uint64
	Close() error
	watched
}

// watched is the part of it that a reload changes.
type watched interface {
	SetServices([]netip.AddrPort) error
}

// socketTable is a diagnosis.
type socketTable interface {
	state(tcprepair.Flow) (tcprepair.State, error)
}

// ends tells the entries that connections of this host are over, so that they forget them. What it misses the entry's idle timeout
// finds. Its goroutines keep what lingers; the engine sends.
type ends struct {
	e       *engine
	source  endSource
	sockets socketTable
	// closed are flows that are over, linger those that this host's kernel still answers for.
	closed, linger lingering
	// again are flows that were being moved when their end was seen.
	again chan tcprepair.Flow
	lost  uint64
}

// endedFlow is a flow and the host that is to forget it.
type endedFlow struct {
	flow  tcprepair.Flow
	entry string
}

func newEnds(e *engine, source endSource, sockets socketTable) *ends {
	return &ends{
		e: e, source: source, sockets: sockets,
		closed: lingering{limit: maxLingering, time: endDelay},
		linger: lingering{limit: maxLingering},
		again:  make(chan tcprepair.Flow, 1024),
	}
}

// entries returns the entry of each address that this host serves.
func (c *Config) entries() map[netip.AddrPort]string {
	entries := make(map[netip.AddrPort]string)
	for _, s := range c.Services {
		for _, a := range s.Addresses {
			entries[a] = s.Entry
		}
	}
	return entries
}

// openEnds returns nil where the kernel or the rights are missing: entries then forget flows when they have been idle for long.
func (a *Agent) openEnds(e *engine) (_ *ends, closeAll func()) {
	if !isOn(a.cfg.Gate.ReportEnds) {
		return nil, func() {}
	}
	failed := func(err error) (*ends, func()) {
		a.log.Warn("entries are not told when connections end", "error", err)
		return nil, func() {}
	}
	d, err := openDiagnosis()
	if err != nil {
		return failed(err)
	}
	if a.cfg.Gate.Mode == GateNFT {
		e.polled = newPoll(a.cfg.addresses(), connections)
		e.watched = e.polled
		return newEnds(e, e.polled, d), func() {
			_ = e.polled.Close() // it holds nothing
			d.close()
		}
	}
	w, err := sockops.Watch(sockops.WatchConfig{Services: a.cfg.addresses()})
	if err != nil {
		d.close()
		return failed(err)
	}
	e.watched = w
	return newEnds(e, w, d), func() {
		_ = w.Close() // the kernel drops it with the process
		d.close()
	}
}

// run works until ctx ends; the source is closed then.
func (s *ends) run(ctx context.Context) error {
	seen := make(chan []sockops.End)
	done := make(chan error, 1)
	go func() {
		done <- s.read(ctx, seen)
		close(seen)
	}()
	stop := context.AfterFunc(ctx, func() { _ = s.source.Close() })
	defer stop()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case batch, ok := <-seen:
			if !ok {
				return <-done
			}
			s.sort(time.Now(), batch)
		case f := <-s.again:
			s.closed.add(time.Now(), f)
		case <-timer.C:
		}
		// Whatever has come: batches that follow closely would put off the timer for ever.
		s.hand(s.due(time.Now()))
		if next := earlier(s.closed.next(), s.linger.next()); !next.IsZero() {
			timer.Reset(max(time.Until(next), endPause))
		}
	}
}

// read collects what ends. A failure may pass: the kernel is short of memory (ENOBUFS), or was interrupted.
func (s *ends) read(ctx context.Context, seen chan<- []sockops.End) error {
	pause := endPause
	for {
		batch, err := s.source.Read(nil)
		if ctx.Err() != nil || errors.Is(err, os.ErrClosed) {
			return nil
		}
		if err == nil {
			pause = endPause
		} else {
			pause = min(2*pause, longestEndPause)
			s.e.log.Warn("cannot see which connections end: entries hear of it later", "again in", pause, "error", err)
		}
		if len(batch) > 0 {
			select {
			case seen <- batch:
			case <-ctx.Done():
				return nil
			}
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil
		}
	}
}

// earlier returns the earlier of two times, either of which may be zero.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// sort lets each flow linger as long as it has to.
func (s *ends) sort(now time.Time, batch []sockops.End) {
	s.linger.time = max(s.e.shared.Load().cfg.Gate.EndLinger, endDelay)
	for _, end := range batch {
		if end.Lingers() {
			s.linger.add(now, end.Flow)
		} else {
			s.closed.add(now, end.Flow)
		}
	}
	if lost := s.source.Lost(); lost != s.lost {
		s.e.metrics.untold.Add(float64(lost - s.lost))
		s.lost = lost
	}
}

// due returns the flows that have lingered, if the kernel has nothing left of them. If a client has used its port again in the
// meantime, that connection's end will be seen for itself.
func (s *ends) due(now time.Time) []tcprepair.Flow {
	var out []tcprepair.Flow
	for {
		f, _, ok := s.closed.take(now)
		if !ok {
			break
		}
		if state, ok := s.look(f); ok && state == stateNone {
			out = append(out, f)
		}
	}
	for {
		f, early, ok := s.linger.take(now)
		if !ok {
			return out
		}
		switch state, ok := s.look(f); {
		case !ok:
		case state == stateNone:
			out = append(out, f)
		case state != stateTimeWait && state != tcprepair.FinWait2:
			// Another connection.
		case early:
			out = append(out, f)
		default:
			s.linger.add(now, f)
		}
	}
}

// look asks the kernel what it has of a flow; false when it does not say.
func (s *ends) look(f tcprepair.Flow) (tcprepair.State, bool) {
	state, err := s.sockets.state(f)
	if err != nil {
		s.e.log.Debug("cannot look for a connection", "flow", f, "error", err)
		s.e.metrics.untold.Inc()
	}
	return state, err == nil
}

func (s *ends) hand(flows []tcprepair.Flow) {
	if len(flows) == 0 {
		return
	}
	s.e.post(func(e *engine) {
		for _, f := range flows {
			entry, ok := e.entries[f.Local]
			if !ok {
				continue // the service is no more
			}
			if e.moving[f] != nil || e.taking[f] != nil {
				// The move comes to its own end first; this may have been the end of what it left behind.
				select {
				case s.again <- f:
				default:
					e.metrics.untold.Inc()
				}
				continue
			}
			e.tellEnded(endedFlow{flow: f, entry: entry})
		}
	})
}

// tellEnded tells a flow's entry that its connection is over, if that can be done at once.
func (e *engine) tellEnded(f endedFlow) {
	m := &wire.Ended{Flow: f.flow, Quiet: endQuiet}
	if f.entry == e.cfg.Host {
		e.flowEnded(e.cfg.Host, m)
		e.metrics.told.Inc()
		return
	}
	p := e.peers[f.entry]
	if p == nil || p.link == nil || p.link.Backlog() > maxEndedBacklog {
		e.metrics.untold.Inc()
		return
	}
	p.send(0, m)
	e.metrics.told.Inc()
}

// flowEnded forgets a flow of which this host is the entry, if it is still from's that says so.
func (e *engine) flowEnded(from string, m *wire.Ended) {
	if is, server := e.cfg.Serves(m.Flow.Local, from); !is || !server {
		return
	}
	r, err := e.gate.Route(m.Flow)
	n, ok := e.hosts.Node(from)
	if err != nil || !ok || !r.Entry() || r.Node != n || m.Epoch != 0 && m.Epoch != r.Epoch || r.Idle < m.Quiet {
		return
	}
	if r.Hold != 0 {
		return // it is being moved to this host
	}
	if err := e.gate.Forget(m.Flow); err != nil {
		e.log.Warn("cannot forget a flow whose connection is over", "flow", m.Flow, "error", err)
		return
	}
	e.metrics.forgotten.Inc()
}
