// SPDX-License-Identifier: Apache-2.0

package ftp

import (
	"github.com/rehome-net/rehome/dispatcher/session"
	"github.com/rehome-net/rehome/dispatcher/session/inspect"
)

// Pair joins commands and replies of one control connection. At a time one data connection of each mode is announced: the next
// PORT ends the last one's announcement, and the next 227 or 229 likewise. The modes are kept apart, so that it does not matter
// when a side's halves come late.
type Pair struct {
	active, passive []session.Announcement
	promises        inspect.Promises
	aborting        bool // ABOR has no reply yet
	extendedOnly    bool // EPSV ALL was sent
	ended           bool
}

var _ inspect.Pair = (*Pair)(nil)

// maxFlows is one of each mode.
const maxFlows = 2

// NewPair returns a pair for a new control connection.
func NewPair(config Config) (*Pair, error) {
	if err := config.validate(); err != nil {
		return nil, err
	}
	return &Pair{}, nil
}

// Add takes a half. A command that opens a port is announced at once, before the server has agreed: the server connects
// at any time after. A data connection has no half of the other side to wait for, since one of its ports stays open.
func (p *Pair) Add(h inspect.Half) (o inspect.Outcome) {
	switch {
	case h.Protocol != inspect.FTP:
		o.Found(inspect.Misplaced)
	case h.Method == inspect.Opaque:
		o.Found(inspect.Encrypted)
	case p.ended:
	case h.Side == inspect.Client:
		p.command(&o, &h)
	default:
		p.reply(&o, &h)
	}
	return o
}

func (p *Pair) command(o *inspect.Outcome, h *inspect.Half) {
	switch h.Method {
	case inspect.Port:
		p.aborting = false
		p.active = p.promises.Replace(o, p.active, p.port(o, h), maxFlows)
	case inspect.Passive:
		p.aborting = false
	case inspect.PassiveAll:
		p.extendedOnly = true
	case inspect.Abort:
		p.aborting = true
	case inspect.Quit:
	default:
		o.Found(inspect.Misplaced)
	}
}

// port returns the flow of PORT or EPRT. The server would connect to whatever address stands there (RFC 2577, 3).
func (p *Pair) port(o *inspect.Outcome, h *inspect.Half) []session.Announcement {
	if len(h.Streams) != 1 {
		o.Found(inspect.Misplaced)
		return nil
	}
	switch a := h.Streams[0].RTP; {
	case p.extendedOnly:
		o.Found(inspect.Promised)
	case a.Addr() != h.Flow.Client.Addr() || a.Port() < leastPort:
		o.FoundAt(inspect.Bounce, a)
	default:
		return inspect.AnnounceFTP(h.Flow, a.Port(), 0)
	}
	return nil
}

func (p *Pair) reply(o *inspect.Outcome, h *inspect.Half) {
	switch h.Status {
	case replyPassive, replyExtendedPassive:
		if len(h.Streams) != 1 || h.Streams[0].RTP.Port() == 0 {
			o.Found(inspect.Misplaced)
			return
		}
		a := h.Streams[0].RTP
		if inspect.Names(a.Addr(), h.Flow.Server.Addr()) {
			o.FoundAt(inspect.Elsewhere, a)
		}
		p.passive = p.promises.Replace(o, p.passive, inspect.AnnounceFTP(h.Flow, 0, a.Port()), maxFlows)
	case replyNoTransfer, replyTransferDone:
		// A transfer's own 226 ends nothing: the client may have sent the next PORT already.
		if p.aborting {
			p.withdraw(o)
		}
		p.aborting = false
	case replyClosing, replyGone:
		p.end(o)
	}
}

// Closed says that the control connection has ended, and the session with it.
func (p *Pair) Closed(session.Key) (o inspect.Outcome) {
	p.end(&o)
	return o
}

func (p *Pair) end(o *inspect.Outcome) {
	p.withdraw(o)
	o.Ended = !p.ended
	p.ended = true
}

func (p *Pair) withdraw(o *inspect.Outcome) {
	p.active = p.promises.Replace(o, p.active, nil, maxFlows)
	p.passive = p.promises.Replace(o, p.passive, nil, maxFlows)
}
