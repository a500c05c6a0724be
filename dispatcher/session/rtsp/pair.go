// SPDX-License-Identifier: Apache-2.0

package rtsp

import (
	"net/netip"
	"slices"
	"time"

	"github.com/rehome-net/rehome/dispatcher/session"
	"github.com/rehome-net/rehome/dispatcher/session/inspect"
)

// defaultTimeout is a session's where the server does not say one (RFC 7826, 18.49).
const defaultTimeout = 60 * time.Second

// notFound is the answer to a request about a session that is over: 454, session not found.
const notFound = 454

// Pair joins requests and answers of one user's RTSP. A session may go on over several connections, and a connection may
// have several sessions.
type Pair struct {
	cfg      Config
	requests []inspect.Half // SETUP and TEARDOWN without an answer yet, the oldest first
	answers  []inspect.Half // without a request yet
	streams  []stream
	promises inspect.Promises
}

// stream is one that a SETUP made.
type stream struct {
	session string
	target  uint64
	flows   []session.Announcement
}

var _ inspect.Pair = (*Pair)(nil)

// NewPair returns a pair for a new session.
func NewPair(config Config) (*Pair, error) {
	if err := config.validate(); err != nil {
		return nil, err
	}
	return &Pair{cfg: config}, nil
}

// Add takes a half. A SETUP announces flows as soon as it and its positive answer are there, in either order; a TEARDOWN withdraws
// with its answer, since the server may refuse it.
func (p *Pair) Add(h inspect.Half) (o inspect.Outcome) {
	switch {
	case h.Protocol != inspect.RTSP:
		o.Found(inspect.Misplaced)
	case h.Method == inspect.Opaque:
		o.Found(inspect.Encrypted)
	case h.Status != 0:
		if request, ok := take(&p.requests, &h); ok {
			p.settle(&o, &request, &h)
		} else if keep(&p.answers, h, p.cfg.Limits.Pending) {
			o.Found(inspect.Full)
		}
	case h.Method == inspect.Setup || h.Method == inspect.Teardown:
		if answer, ok := take(&p.answers, &h); ok {
			p.settle(&o, &h, &answer)
		} else if keep(&p.requests, h, p.cfg.Limits.Pending) {
			o.Found(inspect.Full)
		}
	}
	return o
}

// Closed says that a connection has ended. The session goes on until its timeout: another connection may carry it on
// (RFC 2326, 3). Only a TEARDOWN that has no answer yet is done, for there are servers that answer by hanging up. What else waited
// for the rest of that connection is forgotten.
func (p *Pair) Closed(flow session.Key) (o inspect.Outcome) {
	on := func(h inspect.Half) bool { return h.Flow == flow }
	for i := range p.requests {
		if r := &p.requests[i]; on(*r) && r.Method == inspect.Teardown {
			p.teardown(&o, r)
		}
	}
	p.requests = slices.DeleteFunc(p.requests, on)
	p.answers = slices.DeleteFunc(p.answers, on)
	return o
}

// take removes the half that h belongs to.
func take(list *[]inspect.Half, h *inspect.Half) (inspect.Half, bool) {
	i := slices.IndexFunc(*list, func(l inspect.Half) bool { return l.Seq == h.Seq && l.Side != h.Side && l.Flow == h.Flow })
	if i < 0 {
		return inspect.Half{}, false
	}
	found := (*list)[i]
	*list = slices.Delete(*list, i, i+1)
	return found, true
}

// keep adds a half that waits, in the place of an earlier one of the same name. It tells whether that cost one which announces flows.
func keep(list *[]inspect.Half, h inspect.Half, limit int) (lost bool) {
	*list = slices.DeleteFunc(*list, func(l inspect.Half) bool { return l.Seq == h.Seq && l.Side == h.Side && l.Flow == h.Flow })
	if len(*list) >= limit {
		lost = (*list)[0].Announces()
		*list = slices.Delete(*list, 0, 1)
	}
	*list = append(*list, h)
	return lost
}

// settle does what a request and its answer mean together.
func (p *Pair) settle(o *inspect.Outcome, request, answer *inspect.Half) {
	positive := answer.Status >= 200 && answer.Status < 300
	switch {
	case request.Method == inspect.Setup && request.Side == inspect.Client && positive:
		p.setup(o, request, answer)
	case request.Method == inspect.Teardown && (positive || answer.Status == notFound):
		p.teardown(o, request)
	}
}

func (p *Pair) setup(o *inspect.Outcome, request, answer *inspect.Half) {
	id := answer.Session
	if id == "" {
		id = request.Session
	}
	o.Timeout = answer.Timeout
	if !slices.ContainsFunc(p.streams, func(s stream) bool { return s.session == id }) {
		o.Identity = id
		if o.Timeout == 0 {
			o.Timeout = defaultTimeout
		}
	}
	i := slices.IndexFunc(p.streams, func(s stream) bool { return s.session == id && s.target == request.Target })
	if i < 0 {
		if len(p.streams) >= p.cfg.Limits.Flows {
			o.Found(inspect.Full)
			return
		}
		i = len(p.streams)
		p.streams = append(p.streams, stream{session: id, target: request.Target})
	}
	s := &p.streams[i]
	s.flows = p.promises.Replace(o, s.flows, p.flows(o, request, answer), p.cfg.Limits.Flows)
}

// teardown ends the stream that the request names, or the whole session when it names none of its streams.
func (p *Pair) teardown(o *inspect.Outcome, request *inspect.Half) {
	named := slices.ContainsFunc(p.streams, func(s stream) bool { return s.session == request.Session && s.target == request.Target })
	of := func(s stream) bool { return s.session == request.Session && (!named || s.target == request.Target) }
	before := len(p.streams)
	for _, s := range p.streams {
		if of(s) {
			p.promises.Replace(o, s.flows, nil, p.cfg.Limits.Flows)
		}
	}
	p.streams = slices.DeleteFunc(p.streams, of)
	o.Ended = o.Ended || before > 0 && len(p.streams) == 0
}

// flows returns what a SETUP's answer, which names one of its alternatives, lets the client send.
func (p *Pair) flows(o *inspect.Outcome, request, answer *inspect.Half) []session.Announcement {
	if len(answer.Streams) == 0 {
		o.Found(inspect.RefusedTransport)
		return nil
	}
	server := &answer.Streams[0]
	switch server.Transport {
	case inspect.Interleaved:
		return nil
	case inspect.Multicast:
		o.FoundAt(inspect.RefusedMulticast, server.RTP)
		return nil
	case inspect.RTP, inspect.Datagrams:
	default:
		o.Found(inspect.RefusedTransport)
		return nil
	}
	client := chosen(request.Streams, server)
	if client == nil {
		o.Found(inspect.RefusedTransport)
		return nil
	}
	flow := request.Flow
	for _, destination := range [...]netip.AddrPort{client.RTP, server.PeerRTP} {
		if inspect.Names(destination.Addr(), flow.Client.Addr()) {
			o.FoundAt(inspect.Bounce, destination)
			return nil
		}
	}
	if inspect.Names(server.RTP.Addr(), flow.Server.Addr()) {
		o.FoundAt(inspect.Elsewhere, server.RTP)
		return nil
	}
	return inspect.AnnounceMedia(nil, flow, client, server, client.Mux && server.Mux, p.cfg.OpenClientPorts)
}

// chosen returns the alternative that the server took: it repeats the client's ports, or else it is the first of that transport.
func chosen(alternatives []inspect.Stream, server *inspect.Stream) *inspect.Stream {
	var first *inspect.Stream
	for i := range alternatives {
		a := &alternatives[i]
		if a.Transport != server.Transport {
			continue
		}
		if a.RTP.Port() == server.PeerRTP.Port() {
			return a
		}
		if first == nil {
			first = a
		}
	}
	return first
}
