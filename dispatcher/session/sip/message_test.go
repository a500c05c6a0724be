// SPDX-License-Identifier: Apache-2.0

package sip

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rehome-net/rehome/dispatcher/session/inspect"
	"github.com/rehome-net/rehome/dispatcher/session/inspect/inspecttest"
)

// TestHeads reads heads as unusual as RFC 4475's.
func TestHeads(t *testing.T) {
	want := inspect.Half{Protocol: inspect.SIP, Side: inspect.Client, Flow: testFlow(), Method: inspect.Invite, Seq: 1, Session: "c", From: "f", To: "t"}
	answer := want
	answer.Status = 180
	prack := want
	prack.Method, prack.Ack = inspect.Prack, 7
	expires := want
	expires.Timeout = 90 * time.Second
	long := want
	long.Session = inspect.Name(strings.Repeat("c", 300))
	untagged := want
	untagged.To = ""
	for _, c := range []struct {
		name string
		head string
		want inspect.Half
	}{
		{"plain", "INVITE sip:b@h SIP/2.0|From: <sip:a@h>;tag=f|To: <sip:b@h>;tag=t|Call-ID: c|CSeq: 1 INVITE", want},
		{"no tag yet", "INVITE sip:b@h SIP/2.0|From: <sip:a@h>;tag=f|To: <sip:b@h>|Call-ID: c|CSeq: 1 INVITE", untagged},
		{"names in any case", "INVITE sip:b@h SIP/2.0|FROM: <sip:a@h>;TAG=f|tO: <sip:b@h>;Tag=t|call-id: c|cseq: 1 INVITE", want},
		{"compact", "INVITE sip:b@h SIP/2.0|f: <sip:a@h>;tag=f|T: <sip:b@h>;tag=t|i: c|CSeq: 1 INVITE", want},
		{"without brackets", "INVITE sip:b@h SIP/2.0|From: sip:a@h;tag=f|To: sip:b@h;x=y;tag=t|Call-ID: c|CSeq: 1 INVITE", want},
		{"white space", "INVITE sip:b@h SIP/2.0|From \t: <sip:a@h>  ;  tag  =  f|To: <sip:b@h> ;tag=t |Call-ID:   c  |CSeq:  001   INVITE ", want},
		{"folded", "INVITE sip:b@h SIP/2.0|From:|  <sip:a@h>|\t;tag=f|To: <sip:b@h>;|  tag=t|Call-ID:|  c|CSeq: 1|  INVITE", want},
		{"a quoted name", `INVITE sip:b@h SIP/2.0|From: "a;tag=x \" <sip:x>" <sip:a@h>;tag=f|To: "" <sip:b@h>;tag=t|Call-ID: c|CSeq: 1 INVITE`, want},
		{"an address with parameters", "INVITE sip:b@h;p=1?x=y SIP/2.0|From: <sip:a@h;tag=x>;tag=f|To: <sip:b@[2001:db8::1]:5060>;tag=t|Call-ID: c|CSeq: 1 INVITE", want},
		{"a telephone", "INVITE tel:+15550100 SIP/2.0|From: <tel:+15550101>;tag=f|To: <tel:+15550100;ext=1>;tag=t|Call-ID: c|CSeq: 1 INVITE", want},
		{"an answer", "SIP/2.0 180 Ringing|From: <sip:a@h>;tag=f|To: <sip:b@h>;tag=t|Call-ID: c|CSeq: 1 INVITE", answer},
		{"no reason", "SIP/2.0 180 |From: <sip:a@h>;tag=f|To: <sip:b@h>;tag=t|Call-ID: c|CSeq: 1 INVITE", answer},
		{"a small version", "sip/2.0 180 x|From: <sip:a@h>;tag=f|To: <sip:b@h>;tag=t|Call-ID: c|CSeq: 1 INVITE", answer},
		{"fields that nobody can read", "INVITE sip:b@h SIP/2.0|Via: ???|: x|Contact: <<<|no colon|Date: \xff\x00|From: <sip:a@h>;tag=f|To: <sip:b@h>;tag=t|Call-ID: c|CSeq: 1 INVITE", want},
		{"PRACK", "PRACK sip:b@h SIP/2.0|From: <sip:a@h>;tag=f|To: <sip:b@h>;tag=t|Call-ID: c|CSeq: 1 PRACK|RAck: 3  7 INVITE", prack},
		{"an interval", "INVITE sip:b@h SIP/2.0|x: 90 ; refresher=uas|From: <sip:a@h>;tag=f|To: <sip:b@h>;tag=t|Call-ID: c|CSeq: 1 INVITE", expires},
		{"an interval that is none", "INVITE sip:b@h SIP/2.0|x: soon|From: <sip:a@h>;tag=f|To: <sip:b@h>;tag=t|Call-ID: c|CSeq: 1 INVITE", want},
		{"a long name", "INVITE sip:b@h SIP/2.0|From: <sip:a@h>;tag=f|To: <sip:b@h>;tag=t|Call-ID: " + strings.Repeat("c", 300) + "|CSeq: 1 INVITE", long},
	} {
		got := newParser(t, Config{}, inspect.Client).Datagram([]byte(strings.ReplaceAll(c.head, "|", "\r\n") + "\r\n\r\n"))
		if d := cmp.Diff([]inspect.Half{c.want}, got, inspecttest.Comparer()); d != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, d)
		}
	}
}

// TestHeadsRefused are no messages.
func TestHeadsRefused(t *testing.T) {
	for name, head := range map[string]string{
		"no Call-ID":           "INVITE sip:b@h SIP/2.0|From: <sip:a@h>|To: <sip:b@h>|CSeq: 1 INVITE",
		"an empty Call-ID":     "INVITE sip:b@h SIP/2.0|From: <sip:a@h>|To: <sip:b@h>|Call-ID: |CSeq: 1 INVITE",
		"no From":              "INVITE sip:b@h SIP/2.0|To: <sip:b@h>|Call-ID: c|CSeq: 1 INVITE",
		"no To":                "INVITE sip:b@h SIP/2.0|From: <sip:b@h>|Call-ID: c|CSeq: 1 INVITE",
		"another method":       "INVITE sip:b@h SIP/2.0|From: <sip:a@h>|To: <sip:b@h>|Call-ID: c|CSeq: 1 BYE",
		"CSeq of one word":     "INVITE sip:b@h SIP/2.0|From: <sip:a@h>|To: <sip:b@h>|Call-ID: c|CSeq: 1",
		"CSeq too large":       "INVITE sip:b@h SIP/2.0|From: <sip:a@h>|To: <sip:b@h>|Call-ID: c|CSeq: 2147483648 INVITE",
		"a name out of quotes": `INVITE sip:b@h SIP/2.0|From: "a <sip:a@h>|To: <sip:b@h>|Call-ID: c|CSeq: 1 INVITE`,
		"an open bracket":      "INVITE sip:b@h SIP/2.0|From: <sip:a@h|To: <sip:b@h>|Call-ID: c|CSeq: 1 INVITE",
		"two CSeq":             "INVITE sip:b@h SIP/2.0|From: <sip:a@h>|To: <sip:b@h>|Call-ID: c|CSeq: 1 INVITE|CSeq: 1 INVITE",
		"a short and a long":   "INVITE sip:b@h SIP/2.0|From: <sip:a@h>|f: <sip:a@h>|To: <sip:b@h>|Call-ID: c|CSeq: 1 INVITE",
		"version 3":            "INVITE sip:b@h SIP/3.0|From: <sip:a@h>|To: <sip:b@h>|Call-ID: c|CSeq: 1 INVITE",
		"two spaces":           "INVITE  sip:b@h SIP/2.0|From: <sip:a@h>|To: <sip:b@h>|Call-ID: c|CSeq: 1 INVITE",
		"status 99":            "SIP/2.0 099 x|From: <sip:a@h>|To: <sip:b@h>|Call-ID: c|CSeq: 1 INVITE",
		"status 700":           "SIP/2.0 700 x|From: <sip:a@h>|To: <sip:b@h>|Call-ID: c|CSeq: 1 INVITE",
		"an odd RAck":          "PRACK sip:b@h SIP/2.0|From: <sip:a@h>|To: <sip:b@h>|Call-ID: c|CSeq: 1 PRACK|RAck: 1 x INVITE",
		"no RAck":              "PRACK sip:b@h SIP/2.0|From: <sip:a@h>|To: <sip:b@h>|Call-ID: c|CSeq: 1 PRACK",
	} {
		p := newParser(t, Config{}, inspect.Client)
		if got := p.Datagram([]byte(strings.ReplaceAll(head, "|", "\r\n") + "\r\n\r\n")); len(got) != 0 || p.Stats() != (inspect.Stats{Malformed: 1}) {
			t.Errorf("%s: %+v, %+v", name, got, p.Stats())
		}
	}
}
