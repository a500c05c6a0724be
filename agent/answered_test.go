// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"testing"
	"time"

	"github.com/rehome-net/rehome/handoff/wire"
)

func TestAnswers(t *testing.T) {
	var a answers
	now := time.Unix(1000, 0)
	a.remember(now, 1, false)
	a.remember(now.Add(time.Second), 2, true)
	if !a.known(1) || a.over(1) || !a.known(2) || !a.over(2) || a.known(3) {
		t.Errorf("%+v", a)
	}
	a.remember(now.Add(answeredAge+time.Millisecond), 3, false)
	if a.known(1) || !a.known(2) || !a.known(3) {
		t.Error("not the oldest was forgotten")
	}
	for i := range uint64(2 * maxAnswered) {
		a.remember(now.Add(answeredAge), 10+i, false)
	}
	if len(a.byID) > maxAnswered || len(a.order) > maxAnswered {
		t.Errorf("%d answers are kept", len(a.byID))
	}
}

// TestLocateIsKept says that this host does not have a connection; the connection itself, which comes late, is refused.
func TestLocateIsKept(t *testing.T) {
	e := testEngine(t, "b", "a", "b")
	e.answered.remember(time.Now(), 7, false)
	e.handedOff(&incoming{e: e, name: "b"}, 7, &wire.Handoff{Flow: testFlow(1), Service: "s", Delivery: wire.DeliverLinked, Epoch: 1})
	if e.takers[7] != nil || e.counters.refused != 0 {
		t.Error("it was looked at")
	}
}
