// SPDX-License-Identifier: Apache-2.0

package sip

import (
	"math"
	"strings"
	"time"

	"github.com/emiago/sipgo/sip"

	"github.com/rehome-net/rehome/dispatcher/session/inspect"
)

// maxExpires bounds a session's interval in seconds: a day.
const maxExpires = 86400

// read returns what a message's head says; ok is false for one that breaks a rule which all messages obey. Of a method that
// has no part in dialogs with media, Method is None.
func read(m sip.Message) (h inspect.Half, ok bool) {
	id, seq, from, to := m.CallID(), m.CSeq(), m.From(), m.To()
	if id == nil || seq == nil || from == nil || to == nil {
		return h, false
	}
	method := strings.TrimSpace(string(seq.MethodName))
	switch m := m.(type) {
	case *sip.Request:
		// RFC 3261, 8.1.1.5. A method's name is case-sensitive, but the parser gives the request's in capitals.
		if !strings.EqualFold(string(m.Method), method) {
			return h, false
		}
	case *sip.Response:
		h.Status = uint16(m.StatusCode)
	}
	h.Method, h.Seq = methodOf(method), seq.SeqNo
	h.Session, h.From, h.To = inspect.Name(id.Value()), tag(from.Params), tag(to.Params)
	if h.Method == inspect.Prack && h.Status == 0 {
		// RAck: response number, CSeq number, method (RFC 3262, 7.2).
		words := strings.Fields(value(m, "RAck"))
		if len(words) != 3 {
			return h, false
		}
		if h.Ack, ok = inspect.Number([]byte(words[1]), math.MaxUint32); !ok {
			return h, false
		}
	}
	if seconds, _, _ := strings.Cut(value(m, "Session-Expires"), ";"); seconds != "" {
		if n, ok := inspect.Number([]byte(strings.TrimSpace(seconds)), maxExpires); ok {
			h.Timeout = time.Duration(n) * time.Second
		}
	}
	return h, true
}

func methodOf(name string) inspect.Method {
	switch name {
	case "INVITE":
		return inspect.Invite
	case "ACK":
		return inspect.Ack
	case "PRACK":
		return inspect.Prack
	case "UPDATE":
		return inspect.Update
	case "BYE":
		return inspect.Bye
	case "CANCEL":
		return inspect.Cancel
	}
	return inspect.None
}

// tag returns the tag among a field's parameters (RFC 3261, 19.3).
func tag(parameters sip.HeaderParams) string {
	for k, v := range parameters {
		if strings.EqualFold(strings.TrimSpace(k), "tag") {
			return inspect.Name(strings.TrimSpace(v))
		}
	}
	return ""
}

func value(m sip.Message, name string) string {
	type fields interface{ GetHeader(name string) sip.Header }
	f, ok := m.(fields)
	if !ok {
		return ""
	}
	if h := f.GetHeader(name); h != nil {
		return h.Value()
	}
	return ""
}

func contentType(m sip.Message) string { return value(m, "Content-Type") }
