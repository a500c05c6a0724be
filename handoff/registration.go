// SPDX-License-Identifier: Apache-2.0

package handoff

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rehome-net/rehome/handoff/wire"
)

const (
	minDial          = 10 * time.Millisecond // wait before the second attempt to reach the agent, doubling
	maxDial          = time.Second           // up to this
	handshakeTimeout = 5 * time.Second
	maxAssembly      = 4 * MaxState // of State in chunks whose frame has not come yet, over all migrations
)

// errFrame is a frame that an agent does not send to an application, or not then.
var errFrame = errors.New("unexpected frame")

// registration keeps a listener registered with the host's agent, and carries out what the agent asks for. One
// goroutine, run, owns the link and reads it; what takes time runs beside it, as a move.
type registration struct {
	ln         *Listener
	cfg        *Config
	ctx        context.Context // ends when run does
	stop       context.CancelFunc
	registered atomic.Bool
	report     report
	closing    chan struct{} // closed by close

	mu    sync.Mutex
	link  *wire.Link // nil between links
	moves map[uint64]*move

	// Owned by run.
	chunks  map[uint64]*wire.Assembly
	chunked int // bytes in chunks
}

func newRegistration(l *Listener) *registration {
	ctx, stop := context.WithCancel(context.Background())
	return &registration{
		ln: l, cfg: &l.cfg, ctx: ctx, stop: stop, moves: map[uint64]*move{},
		closing: make(chan struct{}), report: report{load: wire.Load{Service: l.cfg.Service, Unknown: true}},
	}
}

// close ends the registration. The link stays for as long as a move depends on it.
func (r *registration) close() {
	close(r.closing)
	r.settle()
}

// settle ends run when nothing holds it any more.
func (r *registration) settle() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.isClosing() && len(r.moves) == 0 {
		r.stop()
	}
}

func (r *registration) isClosing() bool {
	select {
	case <-r.closing:
		return true
	default:
		return false
	}
}

// run keeps a link to the agent until the registration is closed.
func (r *registration) run() {
	wait := minDial
	for r.ctx.Err() == nil {
		began := time.Now()
		err := r.runLink()
		if r.ctx.Err() != nil {
			return
		}
		if time.Since(began) > maxDial {
			wait = minDial
		}
		if !errors.Is(err, os.ErrNotExist) {
			r.cfg.Logger.Debug("no link to the agent", "socket", r.cfg.Agent, "error", err, "retry", wait)
		}
		select {
		case <-time.After(wait):
		case <-r.ctx.Done():
		}
		wait = min(2*wait, maxDial)
	}
}

// runLink connects to the agent, registers, and serves the link until it fails.
func (r *registration) runLink() error {
	d := net.Dialer{Timeout: handshakeTimeout}
	conn, err := d.DialContext(r.ctx, "unix", r.cfg.Agent)
	if err != nil {
		return err
	}
	link := wire.NewLink(conn)
	defer func() { _ = link.Close() }()
	// Unblocks the reads below when the registration ends.
	defer context.AfterFunc(r.ctx, func() {
		link.Drain(time.Second)
		_ = conn.Close()
	})()
	_ = conn.SetReadDeadline(time.Now().Add(handshakeTimeout))
	if err := r.introduce(link); err != nil {
		return err
	}
	_ = conn.SetReadDeadline(time.Time{})
	r.linked(link)
	err = r.serve(link)
	r.unlinked()
	return err
}

// introduce exchanges Hello and registers. A closing registration only comes back to finish its moves.
func (r *registration) introduce(link *wire.Link) error {
	name := filepath.Base(os.Args[0])
	if err := link.Send(0, wire.NewHello(name, "")); err != nil {
		return err
	}
	m, err := receiveReply(link)
	if err != nil {
		return err
	}
	hello, ok := m.(*wire.Hello)
	if !ok {
		return fmt.Errorf("%w: %v instead of Hello", errFrame, m.Kind())
	}
	if _, err := wire.Negotiate(hello); err != nil {
		return err
	}
	if r.isClosing() {
		return nil
	}
	register := &wire.Register{
		Service: r.cfg.Service, Address: r.ln.Addr().String(), Importer: true, Preparer: r.cfg.Prepare != nil,
	}
	if err := link.Send(1, register); err != nil {
		return err
	}
	if m, err = receiveReply(link); err != nil {
		return err
	}
	switch m := m.(type) {
	case *wire.Registered:
		r.report.linked(link, m.Loads)
		return nil
	case *wire.Refuse:
		r.cfg.Logger.Warn("the agent refuses the service", "service", r.cfg.Service, "code", m.Code.String(), "reason", m.Reason)
		return fmt.Errorf("register %q: refused: %v: %s", r.cfg.Service, m.Code, m.Reason)
	}
	return fmt.Errorf("%w: %v instead of Registered", errFrame, m.Kind())
}

// receiveReply returns the next frame of a handshake.
func receiveReply(link *wire.Link) (wire.Message, error) {
	f, fd, err := link.Receive()
	closeFD(fd)
	return f.Message, err
}

// linked publishes the new link, and tells the agent about the moves that its predecessor left unfinished.
func (r *registration) linked(link *wire.Link) {
	r.chunks, r.chunked = map[uint64]*wire.Assembly{}, 0
	r.mu.Lock()
	defer r.mu.Unlock()
	r.link = link
	r.registered.Store(!r.isClosing())
	r.cfg.Logger.Debug("registered with the agent", "service", r.cfg.Service, "unfinished moves", len(r.moves))
	for id, mv := range r.moves {
		r.recover(id, mv)
	}
}

// unlinked takes back the moves that the agent does not know of; the others wait for the next agent.
func (r *registration) unlinked() {
	r.report.linked(nil, false)
	r.registered.Store(false)
	r.mu.Lock()
	r.link = nil
	for id, mv := range r.moves {
		if mv.sent {
			mv.timer.Reset(r.cfg.RecoverTimeout)
			continue
		}
		delete(r.moves, id)
		mv.cancel()
	}
	r.mu.Unlock()
	r.settle()
}

// serve handles the agent's frames until the link fails.
func (r *registration) serve(link *wire.Link) error {
	for {
		f, fd, err := link.Receive()
		if err != nil {
			return err
		}
		if err := r.handle(link, f, fd); err != nil {
			return err
		}
	}
}

// handle starts or does what one frame asks for; it owns fd. An error ends the link.
func (r *registration) handle(link *wire.Link, f wire.Frame, fd int) error {
	if m, ok := f.Message.(*wire.Import); ok {
		return r.handleImport(link, f.ID, m, fd)
	}
	closeFD(fd)
	switch m := f.Message.(type) {
	case *wire.Ping:
		return link.Send(f.ID, &wire.Pong{})
	case *wire.List:
		return r.sendFlows(link, f.ID, m)
	case *wire.Prepare:
		return r.handlePrepare(link, f.ID, m)
	case *wire.Export:
		return r.handleExport(link, f.ID, m)
	case *wire.Chunk:
		return r.handleChunk(f.ID, m)
	case *wire.Resume:
		r.handleResume(f.ID)
	case *wire.Migrated:
		r.conclude(f.ID, false, func(mv *move) { mv.conn.finish(eventMigrated) })
	case *wire.Activate:
		r.conclude(f.ID, true, r.activate)
	case *wire.Withdraw:
		r.handleWithdraw(f.ID)
	case *wire.Refuse:
		r.cfg.Logger.Warn("the agent cannot finish a move yet", "id", f.ID, "code", m.Code.String(), "reason", m.Reason)
		r.recoverLater(link, f.ID)
	default:
		return fmt.Errorf("%w: %v", errFrame, f.Message.Kind())
	}
	return nil
}

// handleChunk keeps a part of a State whose Import is to come.
func (r *registration) handleChunk(id uint64, m *wire.Chunk) error {
	a := r.chunks[id]
	if a == nil {
		a = &wire.Assembly{}
		r.chunks[id] = a
	}
	if r.chunked += len(m.Data); r.chunked > maxAssembly {
		return fmt.Errorf("%w: chunks of %d bytes wait for their frames", wire.ErrTooLarge, r.chunked)
	}
	return a.Add(m, MaxState)
}

// takeChunks returns what has been kept for id and forgets it.
func (r *registration) takeChunks(id uint64) *wire.Assembly {
	a := r.chunks[id]
	if a == nil {
		return &wire.Assembly{}
	}
	delete(r.chunks, id)
	r.chunked -= len(a.State(nil)) + len(a.Ahead(nil)) + len(a.Snapshot(nil))
	return a
}

// flowsPerFrame keeps a Flows frame, whose entries have at most some 320 bytes, well below wire.MaxFrame.
const flowsPerFrame = 1000

// sendFlows answers List: with all connections, or with the one asked for if it is here.
func (r *registration) sendFlows(link *wire.Link, id uint64, ask *wire.List) error {
	var all []*Conn
	if !ask.Flow.IsValid() {
		all = r.ln.list()
	} else if c := r.ln.find(ask.Flow); c != nil {
		all = append(all, c)
	}
	for {
		n := min(len(all), flowsPerFrame)
		m := wire.Flows{Flows: make([]wire.FlowStatus, 0, n), Last: n == len(all)}
		for _, c := range all[:n] {
			m.Flows = append(m.Flows, c.status(r.cfg.Service, r.cfg.Export != nil))
		}
		if err := link.Send(id, &m); err != nil {
			return err
		}
		if all = all[n:]; m.Last {
			return nil
		}
	}
}

func ageOf(since time.Time) time.Duration { return time.Since(since).Truncate(time.Microsecond) }
