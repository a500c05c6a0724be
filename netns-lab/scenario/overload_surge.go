// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"time"

	dto "github.com/prometheus/client_model/go"

	"github.com/rehome-net/rehome/handoff"
)

const (
	// neighbourService is another application on the servers' hosts, at neighbourPort (RFC 863). It says how loaded it is, and a host is as loaded as the
	// application that is loaded most.
	neighbourService = "neighbour"
	neighbourPort    = 9
	// liftedLoad is what it says in a surge: in the middle between the default T3 and C, as eq. 1 with an alpha of 1 has it.
	liftedLoad = 0.96
	// surgeOffered is the load of the sessions that come in that run, in units of what the servers can complete: they alone do not lift it that far.
	surgeOffered = 1
	// surgePatience is longer than a surge, surgeResend about what clients of SIP wait for an answer until they ask again (RFC 3261's T1 is 500 ms).
	surgePatience = 2500 * time.Millisecond
	surgeResend   = 300 * time.Millisecond
	// surgeWatch is the time between two looks at the dispatcher.
	surgeWatch = 40 * time.Millisecond
)

// OverloadSurge is what came of a run in which the load that the servers' hosts report is above T3 for a while. Only then may packets of established sessions be
// dropped, and who asks again comes through.
type OverloadSurge struct {
	Seed uint64 `json:"seed"`
	// T3 is the operator's. LoadBefore, LoadLifted and LoadAfter are the highest loads that admission has decided by, x of eq. 2.
	T3         float64 `json:"t3"`
	LoadBefore float64 `json:"loadBefore"`
	LoadLifted float64 `json:"loadLifted"`
	LoadAfter  float64 `json:"loadAfter"`
	// DroppedAbove are the packets of established sessions that the kernel dropped while admission had found the load above T3, DroppedBelow those at other
	// times. DroppedFirst are first packets.
	DroppedAbove int `json:"droppedAboveT3"`
	DroppedBelow int `json:"droppedBelowT3"`
	DroppedFirst int `json:"droppedFirstPackets"`
	// Established sessions were there when the load was lifted, or came to be until it was no longer. Hit of them had to ask again, Recovered were completed all
	// the same, Lost were given up; the others went on at the end.
	Established int `json:"established"`
	Hit         int `json:"hit"`
	Recovered   int `json:"recovered"`
	Lost        int `json:"lost"`
	// BegunAfter are the sessions that came to be when the load was no longer lifted.
	BegunAfter int                `json:"begunAfter"`
	Datagrams  *OverloadDatagrams `json:"datagrams"`
}

// startNeighbours starts another application on each server's host.
func (o *overload) startNeighbours(ctx context.Context) error {
	for _, name := range o.lab.Servers() {
		h, err := o.lab.Lab.Host(name)
		if err != nil {
			return err
		}
		err = h.Do(func() error {
			l, err := handoff.Listen(ctx, "tcp", fmt.Sprintf(":%d", neighbourPort), handoff.Config{
				Service: neighbourService, Agent: AgentSocket(o.cfg.Lab, name), Logger: slog.New(slog.DiscardHandler),
			})
			if err == nil {
				o.neighbours = append(o.neighbours, l)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// lift has the neighbours say how loaded they are; NaN: nothing.
func (o *overload) lift(load float64) {
	for _, n := range o.neighbours {
		n.ReportLoad(load)
	}
}

// surges plays one for each seed. Alpha is 1: with less, eq. 1 makes nodes at 1 a cluster below the default T3.
func (o *overload) surges(ctx context.Context) error {
	setup, err := OverloadDatagram.setup(o.cfg)
	if err != nil {
		return err
	}
	setup.admission.Alpha = 1
	return o.behind(ctx, setup, func() error {
		for _, seed := range o.cfg.Seeds {
			if err := o.surge(ctx, seed); err != nil {
				return fmt.Errorf("surge, seed %d: %w", seed, err)
			}
		}
		return nil
	})
}

func (o *overload) surge(ctx context.Context, seed uint64) error {
	client := o.querier(surgePatience, surgeResend)
	if err := o.rest(ctx, client); err != nil {
		return err
	}
	count, err := o.beginCount(ctx, client)
	if err != nil {
		return err
	}
	begin, end := o.cfg.Length/3, o.cfg.Length/3+o.cfg.Surge
	watched, stop := context.WithCancel(ctx)
	defer stop()
	moments, failed := make(chan []moment, 1), make(chan error, 1)
	go func() {
		list, err := o.watch(watched)
		moments <- list
		failed <- err
	}()
	up := time.AfterFunc(begin, func() { o.lift(liftedLoad) })
	down := time.AfterFunc(end, func() { o.lift(math.NaN()) })
	defer func() {
		up.Stop()
		down.Stop()
		o.lift(math.NaN())
	}()
	ends := client.play(ctx, o.visits(seed, surgeOffered), o.cfg.Length)
	stop()
	list, err := <-moments, <-failed
	if err := errors.Join(err, ctx.Err()); err != nil {
		return err
	}
	s := OverloadSurge{Seed: seed}
	s.tallyMoments(list, begin, end)
	s.tallyEnds(ends, begin, end)
	if s.Datagrams, s.DroppedFirst, _, err = count(ctx); err != nil {
		return err
	}
	o.result.Surges = append(o.result.Surges, s)
	o.say("surge, seed %d: load %.2f, lifted to %.2f, %.2f afterwards (T3 %.2f); packets of established sessions dropped: %d above T3, %d below; %d sessions were there, "+
		"%d had to ask again, %d recovered, %d lost; %d began afterwards",
		seed, s.LoadBefore, s.LoadLifted, s.LoadAfter, s.T3, s.DroppedAbove, s.DroppedBelow, s.Established, s.Hit, s.Recovered, s.Lost, s.BegunAfter)
	return nil
}

// moment is how admission stood when somebody looked.
type moment struct {
	at time.Duration
	// load and t3 are those of the last decision, established is the share that it refuses.
	load, t3, established float64
	// above counts the decisions that refused something of established sessions, dropped what the kernel has dropped of them.
	above, dropped int
}

// watch looks again and again until ctx ends.
func (o *overload) watch(ctx context.Context) (list []moment, err error) {
	front, err := o.lab.Lab.Host(FrontHost)
	if err != nil {
		return nil, err
	}
	for begin := time.Now(); ; {
		at := time.Since(begin)
		families, err := scrape(ctx, front, frontMetrics)
		if ctx.Err() != nil {
			return list, nil
		}
		if err != nil {
			return list, err
		}
		list = append(list, readMoment(at, families))
		if pause(ctx, surgeWatch) != nil {
			return list, nil
		}
	}
}

func readMoment(at time.Duration, families map[string]*dto.MetricFamily) moment {
	value := func(name, label string) float64 {
		for _, m := range families["rehome_dispatcher_"+name].GetMetric() {
			if l := m.GetLabel(); label == "" || len(l) == 1 && l[0].GetValue() == label {
				return m.GetGauge().GetValue() + m.GetCounter().GetValue()
			}
		}
		return 0
	}
	return moment{
		at: at, load: value("admission_load", ""), t3: value("admission_threshold", "t3"), established: value("admission_refused_share", "established"),
		above:   int(value("admission_decisions_total", "degrading") + value("admission_decisions_total", "full")),
		dropped: int(value("degraded_packets_total", "")),
	}
}

// tallyMoments says at what loads packets of established sessions were dropped, when the load was lifted from begin to end.
func (s *OverloadSurge) tallyMoments(list []moment, begin, end time.Duration) {
	settled := false
	for i, m := range list {
		switch {
		case m.at < begin:
			s.LoadBefore = max(s.LoadBefore, m.load)
			s.T3 = max(s.T3, m.t3)
		case m.at < end:
			s.LoadLifted = max(s.LoadLifted, m.load)
		default:
			if settled = settled || m.established == 0; settled {
				s.LoadAfter = max(s.LoadAfter, m.load)
			}
		}
		if i == 0 {
			continue
		}
		// What a decision refuses is dropped for a moment longer than the decision is shown: so the moment before the last counts, too.
		last, before := list[i-1], list[max(i-2, 0)]
		if dropped := m.dropped - last.dropped; m.above > before.above || before.established > 0 || last.established > 0 {
			s.DroppedAbove += dropped
		} else {
			s.DroppedBelow += dropped
		}
	}
}

// tallyEnds counts what became of sessions.
func (s *OverloadSurge) tallyEnds(ends []end, begin, over time.Duration) {
	for _, e := range ends {
		switch {
		case e.requests == 0 || e.at < begin:
			continue
		case e.first > over:
			s.BegunAfter++
			continue
		}
		s.Established++
		if e.resent > 0 {
			s.Hit++
		}
		switch e.fate {
		case visitCompleted:
			s.Recovered++
		case visitLate, visitFailed:
			s.Lost++
		case visitRefused, visitCut, fates: // goes on
		}
	}
}

// maxSurgeLost is the share of the sessions that may not come through: in a surge as long as the default each asks three times, of which two thirds are dropped, and then
// again without loss.
const maxSurgeLost = 0.05

// problems says what is wrong.
func (s *OverloadSurge) problems() (list []string) {
	bad := func(format string, args ...any) {
		list = append(list, fmt.Sprintf("surge, seed %d: ", s.Seed)+fmt.Sprintf(format, args...))
	}
	if s.LoadLifted <= s.T3 {
		bad("the load was lifted to %.2f, and T3 is %.2f", s.LoadLifted, s.T3)
	}
	if s.DroppedBelow > 0 {
		bad("%d packets of established sessions were dropped below T3", s.DroppedBelow)
	}
	if s.DroppedAbove == 0 || s.Hit == 0 {
		bad("%d packets of established sessions were dropped above T3, and %d sessions had to ask again", s.DroppedAbove, s.Hit)
	}
	if s.Recovered == 0 || float64(s.Lost) > maxSurgeLost*float64(s.Established) {
		bad("of %d established sessions %d recovered and %d were lost", s.Established, s.Recovered, s.Lost)
	}
	if s.BegunAfter == 0 {
		bad("no session began afterwards")
	}
	if p := s.Datagrams.problem(); p != "" {
		bad("%s", p)
	}
	return list
}
