// SPDX-License-Identifier: Apache-2.0

package streamer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/rehome-net/rehome/handoff"
)

// Config says what to serve. Only Address has no default.
type Config struct {
	// Address is where connections are listened for.
	Address netip.AddrPort
	// Signalling is what they speak, and the name under which the server registers; RTSP when empty.
	Signalling Signalling
	// Agent is the path of the agent's socket, as in handoff.Config.
	Agent string
	// FirstPort is the first of Ports for RTP and RTCP; 8000 and 1000 when zero. FirstPort must be even.
	FirstPort, Ports uint16
	// Capacity is how many sessions make the server as loaded as it can bear: it reports its load then. 0: it reports nothing.
	Capacity int
	// Linger is for how long a session's last datagrams are waited for when its connection has ended; 200 ms when zero.
	Linger time.Duration
	// Dial opens the sockets of media; Dial when nil.
	Dial Dialer
	// Logger gets what goes wrong. Nil: nothing.
	Logger *slog.Logger
}

func (c Config) withDefaults() Config {
	if c.Signalling == "" {
		c.Signalling = RTSP
	}
	if c.FirstPort == 0 {
		c.FirstPort = 8000
	}
	if c.Ports == 0 {
		c.Ports = 1000
	}
	if c.Linger == 0 {
		c.Linger = 200 * time.Millisecond
	}
	if c.Dial == nil {
		c.Dial = Dial
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

func (c *Config) validate() error {
	switch {
	case !c.Address.IsValid() || c.Address.Addr().IsUnspecified():
		return fmt.Errorf("streamer: address %v: want one that clients use, and a port", c.Address)
	case c.FirstPort%2 != 0 || c.Ports < 2 || int(c.FirstPort)+int(c.Ports) > 1<<16:
		return fmt.Errorf("streamer: %d ports from %d: want an even first one, and the last below 65536", c.Ports, c.FirstPort)
	case c.Capacity < 0:
		return fmt.Errorf("streamer: capacity %d: want 0 or more", c.Capacity)
	}
	return c.Signalling.validate()
}

// Total is what a server has served to the end.
type Total struct {
	// Sessions have ended here. RTP and RTCP are the datagrams of theirs that came from clients, wherever; Missing the packets of RTP that never
	// came, as the sequence numbers tell, and Late those that came out of order.
	Sessions, RTP, RTCP, Missing, Late int
	// From has RTP by where it came from.
	From map[netip.AddrPort]int
	// Imported counts the sessions that have come from another host.
	Imported int
}

// Server is a running server.
type Server struct {
	cfg      Config
	listener *handoff.Listener
	ctx      context.Context //nolint:containedctx // it bounds the goroutines of sessions
	cancel   context.CancelFunc
	wg       sync.WaitGroup

	mu      sync.Mutex
	live    int
	next    uint16
	total   Total
	refuses bool
	ending  bool
}

// Listen starts a server; ctx bounds the start only.
func Listen(ctx context.Context, cfg Config) (*Server, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg}
	var err error
	s.listener, err = handoff.Listen(ctx, "tcp", cfg.Address.String(), handoff.Config{
		Service: string(cfg.Signalling), Agent: cfg.Agent, Export: s.export, Import: s.arrive, Logger: cfg.Logger,
	})
	if err != nil {
		return nil, err
	}
	s.ctx, s.cancel = context.WithCancel(context.WithoutCancel(ctx))
	s.count(0)
	s.wg.Go(s.accept)
	return s, nil
}

// Close ends the server, and all its sessions.
func (s *Server) Close() error {
	s.cancel()
	err := s.listener.Close()
	s.wg.Wait()
	return err
}

// Live returns how many sessions the server has.
func (s *Server) Live() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.live
}

// Total returns what sessions that have ended here leave behind.
func (s *Server) Total() Total {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.total
	t.From = maps.Clone(t.From)
	return t
}

// Refuse has the server refuse sessions that come from other hosts, after it has opened their sockets, or take them again.
func (s *Server) Refuse(on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refuses = on
}

// HangUp has the server ask its callers to end their calls: their next INFO is answered with 480.
func (s *Server) HangUp() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ending = true
}

// ends reports whether HangUp was called.
func (s *Server) ends() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ending
}

// errRefuses is what it says then.
var errRefuses = errors.New("this server takes no sessions at present")

// count counts sessions that begin or end, and reports the load.
func (s *Server) count(by int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.live += by
	if s.cfg.Capacity > 0 {
		s.listener.ReportLoad(float64(s.live) / float64(s.cfg.Capacity))
	}
}

// port returns ports for media, in turn.
func (s *Server) port() uint16 {
	s.mu.Lock()
	defer s.mu.Unlock()
	at := s.cfg.FirstPort + s.next
	s.next = (s.next + 2) % (s.cfg.Ports &^ 1)
	return at
}

func (s *Server) accept() {
	for {
		c, err := s.listener.AcceptConn()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			s.wg.Go(func() { s.serve(c) })
		}
	}
}

// session makes a session of a connection.
func (s *Server) session(c *handoff.Conn) (*session, error) {
	local, remote := c.Flow().Local.Addr(), c.Flow().Remote.Addr()
	ses := &session{
		line: c, local: local, remote: remote, port: s.port, dial: s.cfg.Dial, log: s.cfg.Logger,
		calls: s.cfg.Signalling == SIP, signalPort: c.Flow().Local.Port(), ending: s.ends,
	}
	if c.State().Data == nil {
		return ses, nil
	}
	var err error
	if ses.rec, err = parseRecord(c.State().Data); err != nil {
		return nil, err
	}
	if ses.rec.media() {
		err = ses.open(ses.rec.Client, ses.rec.Server)
	}
	return ses, err
}

// arrive is the handoff.Importer: it opens the sockets, so that datagrams find them before the connection is here.
func (s *Server) arrive(_ context.Context, c *handoff.Conn, _ handoff.State) error {
	ses, err := s.session(c)
	if err != nil {
		return err
	}
	c.SetValue(ses)
	s.wg.Go(func() {
		if c.Await(s.ctx) != nil {
			ses.close() // it does not come
		}
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refuses {
		return errRefuses
	}
	return nil
}

// export is the handoff.Exporter.
func (s *Server) export(ctx context.Context, c *handoff.Conn) ([]byte, error) {
	ses, ok := c.Value().(*session)
	if !ok {
		return nil, handoff.ErrNotNow // accepted, and not yet served
	}
	return ses.export(ctx)
}

// serve serves a connection to its end, here or by its moving on.
func (s *Server) serve(c *handoff.Conn) {
	defer c.Close() //nolint:errcheck // nobody is left to tell
	ses, ok := c.Value().(*session)
	if !ok {
		var err error
		if ses, err = s.session(c); err != nil {
			return
		}
		c.SetValue(ses)
	}
	s.count(1)
	defer s.count(-1)
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	ses.wg.Go(func() { ses.send(ctx) })
	err := ses.run()
	moved := errors.Is(err, handoff.ErrMigrated)
	if err != nil && !moved && !errors.Is(err, io.EOF) {
		s.cfg.Logger.Warn("connection", "flow", c.Flow(), "error", err)
	}
	if !moved {
		// The client's last datagrams may come behind its last request.
		select {
		case <-time.After(s.cfg.Linger):
		case <-s.ctx.Done():
		}
	}
	cancel()
	ses.close()
	s.add(ses, c.Imported(), moved)
}

// add sums up what a session leaves behind.
func (s *Server) add(ses *session, imported, moved bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if imported {
		s.total.Imported++
	}
	if moved {
		return
	}
	r := &ses.rec.Received
	s.total.Sessions++
	s.total.RTP += r.RTP
	if s.total.From == nil {
		s.total.From = make(map[netip.AddrPort]int)
	}
	s.total.From[ses.rec.Client] += r.RTP
	s.total.RTCP += r.RTCP
	s.total.Missing += r.Missing
	s.total.Late += r.Late
}
