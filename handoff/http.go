// SPDX-License-Identifier: Apache-2.0

package handoff

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"sync"
)

// HTTP returns cfg completed so that the connections of srv move between requests, with no State: Export is set, and
// srv.ConnState is extended. It must be called before srv serves.
//
//	ln, err := handoff.Listen(ctx, "tcp", ":80", handoff.HTTP(srv, handoff.Config{Service: "web"}))
//	err = srv.Serve(ln)
//
// A keep-alive connection moves when the server has answered every request that it has read a byte of, pipelined ones
// included; a busy one as soon as its response is finished. Connections over TLS, of HTTP/2, hijacked (WebSocket)
// or with requests framed in a way that is rarely seen do not move. A program that wants to move connections in the
// middle of a response speaks of its own State instead, through Config.
func HTTP(srv *http.Server, cfg Config) Config {
	before := srv.ConnState
	srv.ConnState = func(nc net.Conn, s http.ConnState) {
		trackHTTP(nc, s)
		if before != nil {
			before(nc, s)
		}
	}
	cfg.Export = exportHTTP
	cfg.framing = func() framer { return &httpConn{} }
	return cfg
}

// httpConn compares what a connection has read with what its server has answered.
type httpConn struct {
	mu       sync.Mutex
	requests requestScanner
	answered uint64 // requests after which the server fell idle
	fixed    string // why the connection can never move; empty if it can
}

func (h *httpConn) advance(b []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.requests.advance(b)
}

// trackHTTP takes the server's report on a connection. It comes on the goroutine that serves it.
func trackHTTP(nc net.Conn, s http.ConnState) {
	overTLS := false
	if tc, ok := nc.(*tls.Conn); ok {
		nc, overTLS = tc.NetConn(), true
	}
	c, ok := nc.(*Conn)
	if !ok {
		return
	}
	h, ok := c.frames.(*httpConn)
	if !ok {
		return
	}
	switch {
	case s == http.StateHijacked:
		h.fix("it was hijacked")
	case overTLS:
		h.fix("it speaks TLS")
	case s == http.StateIdle:
		h.mu.Lock()
		h.answered++
		h.mu.Unlock()
		c.ExportReady()
	}
}

func (h *httpConn) fix(why string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.fixed = why
}

func exportHTTP(_ context.Context, c *Conn) ([]byte, error) {
	h, ok := c.frames.(*httpConn)
	if !ok {
		return nil, fmt.Errorf("%w: its listener was not configured by HTTP", ErrNotMovable)
	}
	return nil, h.movable()
}

// movable returns nil when everything read has been answered: no byte of a request is in the server's buffers, none of a
// response is unwritten.
func (h *httpConn) movable() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.fixed != "":
		return fmt.Errorf("%w: %s", ErrNotMovable, h.fixed)
	case h.requests.lost():
		return fmt.Errorf("%w: its HTTP requests are framed in an unusual way", ErrNotMovable)
	case !h.requests.atBoundary() || h.requests.count != h.answered:
		return fmt.Errorf("%w: a request is being read or answered", ErrNotNow)
	}
	return nil
}
