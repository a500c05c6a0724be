// SPDX-License-Identifier: Apache-2.0

package sip

import (
	"slices"

	"github.com/rehome-net/rehome/dispatcher/session"
	"github.com/rehome-net/rehome/dispatcher/session/inspect"
)

// maxLegs bounds the early dialogs of one INVITE: places that it was forked to.
const maxLegs = 8

// dialog is one call: everything with the same Call-ID.
type dialog struct {
	call      string
	caller    string // the tag of who spoke first
	exchanges []*exchange
	legs      []*leg
}

// leg is what one called place has agreed to. They differ by its tag (RFC 3261, 12).
type leg struct {
	tag       string
	confirmed bool
	flows     []session.Announcement
}

// exchange is one round of offer and answer (RFC 3264). Which of the two descriptions is the offer does not matter here, only
// that they belong together:
//
//	INVITE (offer)   answer in 1xx or 2xx                   RFC 3261, 13.2.1
//	INVITE (none)    offer in 2xx, answer in ACK            RFC 3261, 13.2.1
//	INVITE (none)    offer in 1xx, answer in PRACK          RFC 3262, 5
//	PRACK (offer)    answer in its 2xx                      RFC 3262, 5
//	UPDATE (offer)   answer in its 2xx                      RFC 3311, 5.1
type exchange struct {
	asker  inspect.Side // who sent the request
	method inspect.Method
	seq    uint32
	offers bool // the request had a description
	tag    string
	flow   session.Key
	// The descriptions; nil: not there yet.
	client, server []inspect.Stream
}

func (d *dialog) leg(tag string) *leg {
	if i := slices.IndexFunc(d.legs, func(l *leg) bool { return l.tag == tag }); i >= 0 {
		return d.legs[i]
	}
	return nil
}

func (d *dialog) confirmed() bool {
	return slices.ContainsFunc(d.legs, func(l *leg) bool { return l.confirmed })
}

// tag returns the tag of the called place, whichever side sends the message.
func (d *dialog) tag(h *inspect.Half) string {
	if h.From == d.caller {
		return h.To
	}
	return h.From
}

// exchange finds the round that a message belongs to, or begins it, and puts its description there. It tells
// whether that changed anything: retransmissions do not.
func (d *dialog) exchange(h *inspect.Half, limit int) (e *exchange, changed bool) {
	asker, method, seq := h.Side, h.Method, h.Seq
	if h.Status != 0 {
		asker = h.Side.Other()
	}
	if method == inspect.Ack {
		method = inspect.Invite
	}
	if method == inspect.Prack && h.Status == 0 {
		if invite := d.find(asker, inspect.Invite, h.Ack); invite != nil && !invite.offers {
			method, seq = inspect.Invite, h.Ack
		}
	}
	if e = d.find(asker, method, seq); e == nil {
		if len(d.exchanges) >= limit {
			d.exchanges = slices.Delete(d.exchanges, 0, 1)
		}
		e = &exchange{asker: asker, method: method, seq: seq}
		d.exchanges = append(d.exchanges, e)
	}
	if len(h.Streams) == 0 {
		return e, false
	}
	if h.Status == 0 && h.Method == method {
		e.offers = true
	}
	where := &e.client
	if h.Side == inspect.Server {
		where = &e.server
	}
	tag := d.tag(h)
	if slices.Equal(*where, h.Streams) && (tag == "" || e.tag == tag) {
		return e, false
	}
	*where = h.Streams
	// The client's own packets say best where it is: a server may answer to another port (RFC 3261, 18.2.2).
	if h.Side == inspect.Client {
		e.flow = h.Flow
	}
	if tag != "" {
		e.tag = tag
	}
	return e, true
}

func (d *dialog) find(asker inspect.Side, method inspect.Method, seq uint32) *exchange {
	for _, e := range d.exchanges {
		if e.asker == asker && e.method == method && e.seq == seq {
			return e
		}
	}
	return nil
}

// forget drops the round whose request was refused.
func (d *dialog) forget(h *inspect.Half) {
	refused := d.find(h.Side.Other(), h.Method, h.Seq)
	d.exchanges = slices.DeleteFunc(d.exchanges, func(e *exchange) bool { return e == refused })
}
