// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync/atomic"

	"github.com/rehome-net/rehome/dispatcher/session"
	"github.com/rehome-net/rehome/dispatcher/session/inspect"
	"github.com/rehome-net/rehome/handoff/peer"
	"github.com/rehome-net/rehome/handoff/wire"
)

// Bounds of what a gateway may send in one report.
const (
	maxHalves    = 256
	maxHalfBytes = 64 << 10
)

// Said is what a server has said on one signalling flow, as a gateway reports it.
type Said struct {
	// Gateway is the name of the gateway, which is authenticated.
	Gateway string
	// Flow carried the signalling; Server is the virtual address.
	Flow session.Key
	// Halves are what the server has said, in its order; they are all of the server's side and of this flow. They come again when a
	// connection breaks before they are confirmed.
	Halves []inspect.Half
}

// ServerConfig says how a dispatcher serves gateways. Gateways and Install are needed.
type ServerConfig struct {
	// Gateways are the names of the hosts that may report, as in their certificates.
	Gateways []string
	// Install is called for each report, in order for one gateway and concurrently for several. When it returns nil, what the halves announce must be in the
	// forwarder: the server's reply goes to the client then. Its error goes to the gateway, and the reply goes to the client nevertheless.
	Install func(context.Context, Said) error
	// Logger receives what no method can return. nil: nothing is logged.
	Logger *slog.Logger
}

// ServerStats counts what a Server did.
type ServerStats struct {
	// Reports were installed; Rejected ones Install did not want.
	Reports, Rejected uint64
	// Refused counts connections that were no configured gateway's, and messages that no gateway sends.
	Refused uint64
	// Links is the number of gateways that are connected.
	Links int64
}

// Server is the dispatcher's side of the channel. Its methods are safe for concurrent use.
type Server struct {
	cfg ServerConfig

	reports, rejected, refused atomic.Uint64
	links                      atomic.Int64
}

// NewServer returns a server; ErrNotGateway is what its methods say of others than cfg's gateways.
func NewServer(cfg ServerConfig) (*Server, error) {
	if cfg.Install == nil {
		return nil, &OpError{Op: "new server", Err: errors.New("no Install: reports would be confirmed that nobody has read")}
	}
	if slices.Contains(cfg.Gateways, "") {
		return nil, &OpError{Op: "new server", Err: errors.New("a gateway without a name")}
	}
	cfg.Gateways = slices.Clone(cfg.Gateways)
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Server{cfg: cfg}, nil
}

// Known reports whether name is a configured gateway.
func (s *Server) Known(name string) bool { return slices.Contains(s.cfg.Gateways, name) }

// Accept finds out who has connected and serves it until its link breaks or ctx ends. Who is no configured gateway is refused and counted.
func (s *Server) Accept(ctx context.Context, self peer.Self, conn net.Conn) error {
	name, link, err := self.Accept(ctx, conn, s.Known)
	if err != nil {
		s.refused.Add(1)
		return &OpError{Op: "accept", Err: fmt.Errorf("%w: %v: %w", ErrNotGateway, conn.RemoteAddr(), err)}
	}
	return s.Serve(ctx, name, link)
}

// Serve serves a link whose other end package peer has identified as name. It closes the link.
func (s *Server) Serve(ctx context.Context, name string, link *wire.Link) error {
	defer link.Close() //nolint:errcheck // it has failed already
	defer context.AfterFunc(ctx, func() { _ = link.Close() })()
	if !s.Known(name) {
		s.refused.Add(1)
		return &OpError{Op: "serve", Err: fmt.Errorf("%w: %s: add it to the gateways", ErrNotGateway, name)}
	}
	s.links.Add(1)
	defer s.links.Add(-1)
	greeted := false
	for {
		f, _, err := link.Receive()
		if err == nil {
			err = s.answer(ctx, name, link, f, &greeted)
			if errors.Is(err, wire.ErrMalformed) {
				s.refused.Add(1)
			}
		} else if errors.Is(err, wire.ErrMalformed) || errors.Is(err, wire.ErrUnknownKind) || errors.Is(err, wire.ErrTooLarge) || errors.Is(err, wire.ErrCritical) {
			s.refused.Add(1)
		}
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return &OpError{Op: "serve " + name, Err: err}
		}
		if !link.More() {
			link.Flush()
		}
	}
}

// answer carries out one frame.
func (s *Server) answer(ctx context.Context, name string, link *wire.Link, f wire.Frame, greeted *bool) error {
	switch m := f.Message.(type) {
	case *wire.Ping:
		return link.Queue(f.ID, &wire.Pong{}, -1)
	case *wire.GatewayHello:
		*greeted = true
		return link.Queue(f.ID, &wire.GatewayHello{}, -1)
	case *wire.Halves:
		if !*greeted {
			return fmt.Errorf("%w: %v before GatewayHello", wire.ErrMalformed, f.Message.Kind())
		}
		said, err := read(name, f.ID, m)
		code := wire.CodeVersion
		if err == nil {
			code, err = wire.CodeFailed, s.cfg.Install(ctx, said)
		} else if !errors.Is(err, inspect.ErrVersion) {
			return err
		}
		if err != nil {
			s.rejected.Add(1)
			s.cfg.Logger.Debug("a gateway's report was not wanted", "gateway", name, "flow", m.Flow, "error", err)
			return link.Queue(f.ID, &wire.Refuse{Code: code, Reason: err.Error()}, -1)
		}
		s.reports.Add(1)
		return link.Queue(f.ID, &wire.Installed{}, -1)
	}
	return fmt.Errorf("%w: %v from a gateway", wire.ErrMalformed, f.Message.Kind())
}

// read checks a report.
func read(name string, id uint64, m *wire.Halves) (Said, error) {
	bytes := 0
	for _, h := range m.Halves {
		bytes += len(h)
	}
	switch {
	case id == 0 || !m.Flow.IsValid() || !isSignalling(m.Protocol):
		return Said{}, fmt.Errorf("%w: report %d on flow %v, protocol %d", wire.ErrMalformed, id, m.Flow, m.Protocol)
	case len(m.Halves) == 0 || len(m.Halves) > maxHalves || bytes > maxHalfBytes:
		return Said{}, fmt.Errorf("%w: report of %d halves, %d bytes", wire.ErrMalformed, len(m.Halves), bytes)
	}
	said := Said{Gateway: name, Flow: session.Key{Client: m.Flow.Remote, Server: m.Flow.Local, Protocol: m.Protocol}}
	for _, encoded := range m.Halves {
		h, err := inspect.Decode(encoded)
		switch {
		case errors.Is(err, inspect.ErrVersion):
			return Said{}, err
		case err != nil:
			return Said{}, fmt.Errorf("%w: %w", wire.ErrMalformed, err)
		case h.Side != inspect.Server || h.Flow != said.Flow:
			return Said{}, fmt.Errorf("%w: a half of the %v's on %v in a report on %v", wire.ErrMalformed, h.Side, h.Flow, said.Flow)
		}
		said.Halves = append(said.Halves, h)
	}
	return said, nil
}

// Stats returns what was counted so far.
func (s *Server) Stats() ServerStats {
	return ServerStats{Reports: s.reports.Load(), Rejected: s.rejected.Load(), Refused: s.refused.Load(), Links: s.links.Load()}
}
