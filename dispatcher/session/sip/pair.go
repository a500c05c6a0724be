// SPDX-License-Identifier: Apache-2.0

package sip

import (
	"slices"

	"github.com/rehome-net/rehome/dispatcher/session"
	"github.com/rehome-net/rehome/dispatcher/session/inspect"
)

// Pair joins offers and answers of one user's calls. All calls that one signalling flow carries reach one server, so a
// session may have many of them, of a trunk.
type Pair struct {
	cfg      Config
	dialogs  []*dialog // the oldest first
	promises inspect.Promises
}

var _ inspect.Pair = (*Pair)(nil)

// NewPair returns a pair for a new session.
func NewPair(config Config) (*Pair, error) {
	if err := config.validate(); err != nil {
		return nil, err
	}
	return &Pair{cfg: config}, nil
}

// Add takes a half. Media are announced as soon as the session descriptions of both sides are there, in either order: with the first
// provisional answer that has one, for media may come early. They are withdrawn with the answer to a BYE, with a final refusal of
// the call, and when a new description leaves them out.
func (p *Pair) Add(h inspect.Half) (o inspect.Outcome) {
	switch {
	case h.Protocol == inspect.SIP && h.Method == inspect.Opaque:
		o.Found(inspect.Encrypted)
		return o
	case h.Protocol != inspect.SIP || h.Method < inspect.Invite || h.Method > inspect.Cancel || h.Session == "":
		o.Found(inspect.Misplaced)
		return o
	case h.Method == inspect.Cancel:
		return o // the INVITE's own answer says what became of it (RFC 3261, 9.1)
	}
	d := p.dialog(h.Session)
	if d == nil {
		if h.Status >= 300 || h.Method == inspect.Bye || h.Method != inspect.Invite && len(h.Streams) == 0 {
			return o // of a call that is over, or never was
		}
		d = p.open(&o, &h)
		o.Identity = h.Session
	}
	switch {
	case h.Method == inspect.Bye && h.Status != 0:
		if h.Status >= 200 && !again(h.Status) {
			p.end(&o, d, d.tag(&h))
		}
	case h.Method == inspect.Bye:
	case h.Status >= 300:
		p.refused(&o, d, &h)
	default:
		p.describe(&o, d, &h)
	}
	return o
}

// Closed says that a TCP connection has ended. Dialogs go on: they live in messages, on whatever connection (RFC 3261, 18).
func (p *Pair) Closed(session.Key) inspect.Outcome { return inspect.Outcome{} }

func (p *Pair) dialog(call string) *dialog {
	if i := slices.IndexFunc(p.dialogs, func(d *dialog) bool { return d.call == call }); i >= 0 {
		return p.dialogs[i]
	}
	return nil
}

// open begins a dialog. At the limit the oldest without flows makes room, which a lost message has left behind, or else the
// oldest.
func (p *Pair) open(o *inspect.Outcome, h *inspect.Half) *dialog {
	if len(p.dialogs) >= p.cfg.Limits.Dialogs {
		i := slices.IndexFunc(p.dialogs, func(d *dialog) bool { return len(d.legs) == 0 })
		if i < 0 {
			o.Found(inspect.Full)
			i = 0
		}
		p.drop(o, p.dialogs[i])
	}
	d := &dialog{call: h.Session, caller: h.From}
	p.dialogs = append(p.dialogs, d)
	return d
}

// describe takes a request, or an answer that is no refusal.
func (p *Pair) describe(o *inspect.Outcome, d *dialog, h *inspect.Half) {
	if h.Status >= 200 && h.Timeout != 0 {
		o.Timeout = h.Timeout
	}
	e, changed := d.exchange(h, p.cfg.Limits.Exchanges)
	if changed {
		p.trim(o, e)
	}
	if changed && e.client != nil && e.server != nil {
		l := p.leg(o, d, e.tag)
		l.flows = p.promises.Replace(o, l.flows, p.flows(o, e), p.cfg.Limits.Flows)
	}
	if h.Status >= 200 && h.Method == inspect.Invite {
		p.leg(o, d, d.tag(h)).confirmed = true
		// The other early dialogs end with the first that is answered, unless they are answered, too (RFC 3261, 13.2.2.4).
		p.dropLegs(o, d, func(l *leg) bool { return !l.confirmed })
	}
}

// trim forgets exchanges other than the present one, those of the oldest dialogs first, until few enough streams are remembered. What is
// announced stays; only an answer that is still to come will find nothing.
func (p *Pair) trim(o *inspect.Outcome, present *exchange) {
	streams := 0
	for _, d := range p.dialogs {
		for _, e := range d.exchanges {
			streams += len(e.client) + len(e.server)
		}
	}
	for _, d := range p.dialogs {
		d.exchanges = slices.DeleteFunc(d.exchanges, func(e *exchange) bool {
			if streams <= p.cfg.Limits.Streams || e == present {
				return false
			}
			if e.client == nil || e.server == nil {
				o.Found(inspect.Full)
			}
			streams -= len(e.client) + len(e.server)
			return true
		})
	}
}

// leg returns a dialog's leg, new if need be; at the limit the oldest makes room.
func (p *Pair) leg(o *inspect.Outcome, d *dialog, tag string) *leg {
	if l := d.leg(tag); l != nil {
		return l
	}
	if len(d.legs) >= maxLegs {
		o.Found(inspect.Full)
		oldest := d.legs[0]
		p.dropLegs(o, d, func(l *leg) bool { return l == oldest })
	}
	l := &leg{tag: tag}
	d.legs = append(d.legs, l)
	return l
}

// refused takes a final answer that is none: to the first INVITE it ends the call, later ones leave everything as it was.
func (p *Pair) refused(o *inspect.Outcome, d *dialog, h *inspect.Half) {
	d.forget(h)
	if h.Method != inspect.Invite || d.confirmed() {
		return
	}
	p.dropLegs(o, d, func(*leg) bool { return true })
	if !again(h.Status) {
		p.drop(o, d)
		o.Ended = len(p.dialogs) == 0
	}
}

// again tells refusals after which the client sends the request once more: it was asked for credentials, an extension or a longer
// interval (RFC 3261, 8.1.3.5; RFC 4028, 6).
func again(status uint16) bool {
	switch status {
	case 401, 407, 413, 415, 416, 420, 421, 422, 494:
		return true
	}
	return false
}

// end takes the end of one leg of a dialog, and of the dialog with its last. A leg that is not known is not this call's
// business, unless none is.
func (p *Pair) end(o *inspect.Outcome, d *dialog, tag string) {
	p.dropLegs(o, d, func(l *leg) bool { return l.tag == tag || l.tag == "" })
	if len(d.legs) == 0 {
		p.drop(o, d)
		o.Ended = len(p.dialogs) == 0
	}
}

func (p *Pair) drop(o *inspect.Outcome, d *dialog) {
	p.dropLegs(o, d, func(*leg) bool { return true })
	p.dialogs = slices.DeleteFunc(p.dialogs, func(other *dialog) bool { return other == d })
}

func (p *Pair) dropLegs(o *inspect.Outcome, d *dialog, which func(*leg) bool) {
	for _, l := range d.legs {
		if which(l) {
			p.promises.Replace(o, l.flows, nil, p.cfg.Limits.Flows)
		}
	}
	d.legs = slices.DeleteFunc(d.legs, which)
}

// flows returns what the media that both sides describe let the client send.
func (p *Pair) flows(o *inspect.Outcome, e *exchange) (list []session.Announcement) {
	for i := range min(len(e.client), len(e.server)) {
		client, server := &e.client[i], &e.server[i]
		switch {
		case client.Transport == inspect.Rejected || server.Transport == inspect.Rejected:
		case client.Transport == inspect.Multicast || server.Transport == inspect.Multicast:
			o.Found(inspect.RefusedMulticast)
		case client.Transport != server.Transport || client.Transport != inspect.RTP && client.Transport != inspect.Datagrams:
			o.Found(inspect.RefusedTransport)
		case inspect.Names(server.RTP.Addr(), e.flow.Server.Addr()):
			o.FoundAt(inspect.Elsewhere, server.RTP)
		default:
			// A client that names another address than its own sits behind NAT, which chooses its port.
			nat := inspect.Names(client.RTP.Addr(), e.flow.Client.Addr())
			list = inspect.AnnounceMedia(list, e.flow, client, server, client.Mux && server.Mux, nat)
		}
	}
	return list
}
