// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

func TestQuestion(t *testing.T) {
	q := question{run: 4, session: 1237, number: 11, try: 2}
	if got, want := q.name(), "t2.q11.s1237.r4.queue.example."; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	datagram, err := q.query()
	if err != nil || len(datagram) > maxQuestion {
		t.Fatal(len(datagram), err)
	}
	asked, answer, err := openQuery(datagram, netip.MustParseAddr("192.0.2.1"))
	if err != nil || asked != q {
		t.Errorf("asked %+v, %v", asked, err)
	}
	if answered, err := openAnswer(answer); err != nil || answered != q || len(answer) > maxQuestion {
		t.Errorf("answered %+v, %v", answered, err)
	}
	// A question is no answer, and an answer no question.
	if _, err := openAnswer(datagram); !errors.Is(err, errQuestion) {
		t.Errorf("a query as an answer: %v", err)
	}
	if _, _, err := openQuery(answer, netip.Addr{}); !errors.Is(err, errQuestion) {
		t.Errorf("an answer as a query: %v", err)
	}
	refusal := append([]byte(nil), answer...)
	refusal[3] |= 5 // REFUSED
	if _, err := openAnswer(refusal); err == nil {
		t.Error("a refusal is an answer")
	}
}

func TestParseQuestion(t *testing.T) {
	for _, name := range []string{
		"", "queue.example.", "t0.q0.s0.r0.queue.example", "t0.q0.s0.r0.queue.example.x", "t00.q0.s0.r0.queue.example.", "t+1.q0.s0.r0.queue.example.",
		"q0.t0.s0.r0.queue.example.", "t0.q0.s0.queue.example.",
	} {
		if q, err := parseQuestion(name); !errors.Is(err, errQuestion) {
			t.Errorf("%q: %+v, %v", name, q, err)
		}
	}
}

func FuzzParseQuestion(f *testing.F) {
	f.Add(question{1, 2, 3, 4}.name())
	f.Add("t0.q0.s0.r0.queue.example")
	f.Fuzz(func(t *testing.T, name string) {
		if q, err := parseQuestion(name); err == nil && q.name() != name {
			t.Errorf("%q: %+v", name, q)
		}
	})
}

func FuzzOpenQuery(f *testing.F) {
	datagram, err := question{1, 2, 3, 4}.query()
	if err != nil {
		f.Fatal(err)
	}
	_, answer, err := openQuery(datagram, netip.MustParseAddr("192.0.2.1"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(datagram)
	f.Add(answer)
	f.Fuzz(func(t *testing.T, datagram []byte) {
		q, answer, err := openQuery(datagram, netip.MustParseAddr("192.0.2.1"))
		if err == nil {
			got, err := openAnswer(answer)
			if err != nil || got != q {
				t.Errorf("%+v is answered as %+v, %v", q, got, err)
			}
		}
		_, _ = openAnswer(datagram)
	})
}

// silent is a server of names that answers all but the datagrams that drop says, and counts what comes.
func answering(t *testing.T, drop func(question) bool) (dialer, func() []string) {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	came := make(chan []string, 1)
	came <- nil
	done := make(chan struct{})
	go func() {
		defer close(done)
		for into := make([]byte, maxQuestion); ; {
			n, from, err := conn.ReadFrom(into)
			if err != nil {
				return
			}
			q, answer, err := openQuery(into[:n], netip.MustParseAddr("192.0.2.1"))
			if err != nil {
				t.Error(err)
			}
			came <- append(<-came, q.name())
			if !drop(q) {
				_, _ = conn.WriteTo(answer, from)
			}
		}
	}()
	t.Cleanup(func() {
		_ = conn.Close()
		<-done
	})
	dial := func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", conn.LocalAddr().String())
	}
	return dial, func() []string {
		list := <-came
		came <- list
		return list
	}
}

// TestQuerier: a session's first question is asked once, later ones until there is an answer, or patience ends.
func TestQuerier(t *testing.T) {
	three := visit{thinks: []time.Duration{0, 0}}
	for _, tt := range []struct {
		name string
		drop func(question) bool
		want end
		came []string
	}{
		{"answered", func(question) bool { return false }, end{fate: visitCompleted, requests: 3}, []string{"t0.q0", "t0.q1", "t0.q2"}},
		{"refused", func(question) bool { return true }, end{fate: visitRefused}, []string{"t0.q0"}},
		{
			"degraded", func(q question) bool { return q.number == 1 && q.try < 2 },
			end{fate: visitCompleted, requests: 3, resent: 2},
			[]string{"t0.q0", "t0.q1", "t1.q1", "t2.q1", "t0.q2"},
		},
		{"given up", func(q question) bool { return q.number == 2 }, end{fate: visitLate, requests: 2}, []string{"t0.q0", "t0.q1", "t0.q2", "t1.q2", "t2.q2", "t3.q2"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dial, came := answering(t, tt.drop)
			c := &querier{dial: dial, patience: ms(350), resend: ms(100), run: 7}
			got := c.play(t.Context(), []visit{three}, time.Minute)[0]
			if (got.first > 0) != (got.requests > 0) || got.at < got.first {
				t.Errorf("first answered at %v, ended at %v", got.first, got.at)
			}
			if got.fate != tt.want.fate || got.requests != tt.want.requests || got.resent != tt.want.resent {
				t.Errorf("%+v, want %+v", got, tt.want)
			}
			list := came()
			for i := range list {
				list[i] = strings.TrimSuffix(list[i], ".s0.r7.queue.example.")
			}
			if diff := cmp.Diff(tt.came, list); diff != "" || int(c.sent.Load()) != len(list) {
				t.Errorf("%d sent (-want +got):\n%s", c.sent.Load(), diff)
			}
		})
	}
}

// TestQuerierCut: what goes on at the end of a run is cut off, and is no failure.
func TestQuerierCut(t *testing.T) {
	dial, _ := answering(t, func(q question) bool { return q.number == 1 })
	c := &querier{dial: dial, patience: time.Minute, resend: time.Minute}
	if got := c.play(t.Context(), []visit{{thinks: []time.Duration{0}}, {at: time.Hour}}, ms(100)); got[0].fate != visitCut || got[1].fate != visitCut {
		t.Errorf("%+v", got)
	}
	if got := c.fateOf(t.Context(), 1, fmt.Errorf("read: %w", os.ErrInvalid)); got != visitFailed {
		t.Errorf("a broken session: %v", got)
	}
}

// TestTellLate: a session that was not answered, and of which a server has seen something, was not refused.
func TestTellLate(t *testing.T) {
	o := &overload{upstreams: []*upstream{{seen: map[int]bool{0: true}, run: 1}, {seen: map[int]bool{2: true}, run: 1}}}
	ends := []end{{fate: visitCompleted}, {fate: visitRefused}, {fate: visitRefused}}
	o.tellLate(ends)
	if ends[0].fate != visitCompleted || ends[1].fate != visitRefused || ends[2].fate != visitLate {
		t.Errorf("%+v", ends)
	}
	u := o.upstreams[0]
	u.count(question{run: 1, session: 5}, nil)
	u.count(question{run: 1, session: 5, number: 1}, nil)
	u.count(question{run: 0, session: 6}, nil) // of the run before
	if arrived, sessions, err := u.counted(); arrived != 2 || sessions != 2 || err != nil || !u.saw(5) || u.saw(6) {
		t.Errorf("%d questions of %d sessions, %v", arrived, sessions, err)
	}
	u.count(question{}, errQuestion)
	if u.begin(2); u.saw(5) {
		t.Error("a new run has the sessions of the old one")
	}
	if arrived, _, err := u.counted(); arrived != 0 || !errors.Is(err, errQuestion) {
		t.Errorf("%d questions, %v: want none, and the stranger", arrived, err)
	}
}

// TestReadMoment reads a dispatcher's metrics.
func TestReadMoment(t *testing.T) {
	const text = `
# TYPE rehome_dispatcher_admission_load gauge
rehome_dispatcher_admission_load 0.95
# TYPE rehome_dispatcher_admission_threshold gauge
rehome_dispatcher_admission_threshold{threshold="t2"} 0.85
rehome_dispatcher_admission_threshold{threshold="t3"} 0.92
# TYPE rehome_dispatcher_admission_refused_share gauge
rehome_dispatcher_admission_refused_share{flows="new"} 1
rehome_dispatcher_admission_refused_share{flows="established"} 0.375
# TYPE rehome_dispatcher_admission_decisions_total counter
rehome_dispatcher_admission_decisions_total{state="accepting"} 9
rehome_dispatcher_admission_decisions_total{state="degrading"} 3
rehome_dispatcher_admission_decisions_total{state="full"} 2
# TYPE rehome_dispatcher_degraded_packets_total counter
rehome_dispatcher_degraded_packets_total 17
`
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	want := moment{at: ms(40), load: 0.95, t3: 0.92, established: 0.375, above: 5, dropped: 17}
	if got := readMoment(ms(40), families); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}

// TestSurgeMoments: lifted from 100 to 200 ms.
func TestSurgeMoments(t *testing.T) {
	calm := func(at, dropped, above int, load float64) moment {
		return moment{at: ms(at), load: load, t3: 0.92, dropped: dropped, above: above}
	}
	hot := func(at, dropped, above int, load float64) moment {
		return moment{at: ms(at), load: load, t3: 0.87, established: 0.5, dropped: dropped, above: above}
	}
	for _, tt := range []struct {
		name string
		list []moment
		want OverloadSurge
	}{
		{"as it should be", []moment{
			calm(0, 5, 0, 0.7), calm(40, 5, 0, 0.8), calm(80, 5, 0, 0.75), calm(120, 5, 0, 0.8), hot(160, 9, 1, 0.96), hot(200, 20, 2, 0.97),
			hot(240, 25, 3, 0.96), calm(280, 27, 3, 0.6), calm(320, 28, 3, 0.8), calm(360, 28, 3, 0.78),
		}, OverloadSurge{T3: 0.92, LoadBefore: 0.8, LoadLifted: 0.96, LoadAfter: 0.8, DroppedAbove: 23}},
		{"dropped before", []moment{calm(0, 0, 0, 0.7), calm(40, 3, 0, 0.7)}, OverloadSurge{T3: 0.92, LoadBefore: 0.7, DroppedBelow: 3}},
		{"dropped long after", []moment{
			hot(160, 0, 1, 0.96), hot(220, 1, 1, 0.95), calm(260, 2, 1, 0.7), calm(300, 3, 1, 0.8), calm(340, 7, 1, 0.7),
		}, OverloadSurge{LoadLifted: 0.96, LoadAfter: 0.8, DroppedAbove: 3, DroppedBelow: 4}},
		{"a decision that was over when somebody looked", []moment{calm(0, 0, 0, 0.7), calm(300, 3, 1, 0.7)}, OverloadSurge{T3: 0.92, LoadBefore: 0.7, LoadAfter: 0.7, DroppedAbove: 3}},
	} {
		var got OverloadSurge
		got.tallyMoments(tt.list, ms(100), ms(200))
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}

// TestSurgeEnds: lifted from 100 to 200 ms.
func TestSurgeEnds(t *testing.T) {
	var got OverloadSurge
	got.tallyEnds([]end{
		{fate: visitCompleted, requests: 2, first: ms(10), at: ms(90)}, // over before
		{fate: visitRefused, at: ms(150)},
		{fate: visitCompleted, requests: 2, first: ms(10), at: ms(150)},
		{fate: visitCompleted, requests: 2, first: ms(150), at: ms(350), resent: 2},
		{fate: visitLate, requests: 1, first: ms(90), at: ms(290), resent: 3},
		{fate: visitCut, requests: 1, first: ms(90), at: ms(600)},
		{fate: visitCompleted, requests: 2, first: ms(210), at: ms(350)}, // began afterwards
		{fate: visitCut, at: ms(600)},
	}, ms(100), ms(200))
	want := OverloadSurge{Established: 4, Hit: 2, Recovered: 2, Lost: 1, BegunAfter: 1}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestSurgeProblems(t *testing.T) {
	for name, change := range map[string]func(*OverloadSurge){
		"":                                func(*OverloadSurge) {},
		"load was lifted":                 func(s *OverloadSurge) { s.LoadLifted = 0.9 },
		"were dropped below":              func(s *OverloadSurge) { s.DroppedBelow = 1 },
		"0 packets of established":        func(s *OverloadSurge) { s.DroppedAbove = 0 },
		"0 sessions had to ask":           func(s *OverloadSurge) { s.Hit = 0 },
		"94 recovered and 6":              func(s *OverloadSurge) { s.Recovered, s.Lost = 94, 6 },
		"0 recovered":                     func(s *OverloadSurge) { s.Recovered = 0 },
		"no session began":                func(s *OverloadSurge) { s.BegunAfter = 0 },
		"counters do not tell of 11":      func(s *OverloadSurge) { s.Datagrams.Missing = 11 },
		"counters do not tell of -11":     func(s *OverloadSurge) { s.Datagrams.Missing = -11 },
		"counters do not tell of -500000": func(s *OverloadSurge) { s.Datagrams.Missing = -500000 },
	} {
		s := OverloadSurge{
			T3: 0.92, LoadLifted: 0.96, DroppedAbove: 10, Established: 100, Hit: 50, Recovered: 95, Lost: 5, BegunAfter: 20,
			Datagrams: &OverloadDatagrams{Sent: 1000, Missing: 10},
		}
		change(&s)
		got := s.problems()
		if name == "" && len(got) > 0 || name != "" && (len(got) != 1 || !strings.Contains(got[0], name)) {
			t.Errorf("%q: %q", name, got)
		}
	}
}
