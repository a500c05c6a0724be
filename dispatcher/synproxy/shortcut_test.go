// SPDX-License-Identifier: Apache-2.0

package synproxy

import (
	"testing"

	"github.com/rehome-net/rehome/handoff/cookie"
	netnslab "github.com/rehome-net/rehome/netns-lab"
)

// Answers to SYNs go by the interface or past it, and handshakes end either way.
func TestShortcut(t *testing.T) {
	const dials = 20
	versions(t, func(t *testing.T, v6 bool) {
		r := newRig(t, rigConfig{})
		index := locate(t, r.entry).index
		l := listen(t, r.servers[0], all(port), false)
		shake := func(when string, short bool) {
			t.Helper()
			before := framesSent(t, r.entry)
			answered := r.stats(t).Answered
			for i := range dials {
				conn := r.dial(t, r.at(v6), 0)
				if i > 0 {
					continue
				}
				// One is used.
				if _, err := conn.Write(ramp(t, 0, 1000)); err != nil {
					t.Fatal(err)
				}
				expect(t, when, accept(t, l), 0, 1000)
			}
			if n := r.stats(t).Answered - answered; n < dials {
				t.Errorf("%s: %d answers", when, n)
			}
			// First packets leave by the interface always, and neighbours are looked for now and then.
			if n := framesSent(t, r.entry) - before; (n < dials) != short {
				t.Errorf("%s: %d frames left by the interface", when, n)
			}
		}
		set := func(index int, short bool) {
			t.Helper()
			if err := r.proxy.SetShortcut(index, short); err != nil {
				t.Fatal(err)
			}
		}
		shake("at first", false)
		set(index+1, true)
		shake("of another interface", false)
		set(index, true)
		shake("shortcut", true)
		if err := r.proxy.SetParameters(cookie.Parameters{Secret: r.secret}); err != nil {
			t.Fatal(err)
		}
		shake("with new parameters", true)
		set(index, false)
		shake("no shortcut any more", false)
	})
}

func framesSent(t *testing.T, h *netnslab.Host) uint64 {
	t.Helper()
	l, err := h.Link()
	if err != nil {
		t.Fatal(err)
	}
	return l.Sent.Packets
}
