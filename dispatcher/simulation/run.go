// SPDX-License-Identifier: Apache-2.0

package simulation

import (
	"fmt"
	"math"
	"time"

	"github.com/rehome-net/rehome/dispatcher/admission"
	"github.com/rehome-net/rehome/dispatcher/balance"
	"github.com/rehome-net/rehome/dispatcher/forecast"
)

// session is one that has come and not gone.
type session struct {
	random   stream
	left     int32 // requests, with the one under way
	requests int32 // in all
	server   int16 // -1 before it has one
	attempts int8  // how often the request under way was refused
	sent     float64
	work     float64 // that servers have spent on it
}

// run is a cluster at work.
type run struct {
	c      Config
	now    float64
	agenda agenda

	servers  []server
	sessions []session
	free     []int32 // places in sessions
	arrived  int
	offered  float64
	changes  []Change
	arrivals stream
	coin     stream

	admission admission.Policy
	decision  admission.Decision
	balance   balance.Policy
	series    []*forecast.Series
	loads     []float64 // as admission and balance see them
	backends  []balance.Backend
	reports   uint64

	trace  trace
	wasted float64
	busy   float64
	result Result
}

// Run simulates. Errors name what is wrong with the Config.
func Run(c Config) (Result, error) {
	c = c.withDefaults()
	if err := c.validate(); err != nil {
		return Result{}, err
	}
	r := &run{
		c: c, offered: c.Offered, changes: c.Changes, arrivals: streamOf(c.Seed, 1<<63), coin: streamOf(c.Seed, 1<<63+1),
		servers: make([]server, c.Servers), loads: make([]float64, c.Servers), backends: make([]balance.Backend, c.Servers),
	}
	var err error
	if r.admission, err = admission.New(c.Admission); err != nil {
		return Result{}, fmt.Errorf("simulation: %w", err)
	}
	if r.balance, err = balance.New(balance.Config{Kind: c.Balance}); err != nil {
		return Result{}, fmt.Errorf("simulation: balance: %w", err)
	}
	for i := range r.servers {
		r.servers[i].speed = 1
		r.backends[i] = balance.Backend{Name: fmt.Sprint(i), Weight: 1}
		series, err := forecast.New(c.Forecast)
		if err != nil {
			return Result{}, fmt.Errorf("simulation: %w", err)
		}
		r.series = append(r.series, series)
	}
	r.trace = newTrace(c)
	r.play()
	return r.finish(), nil
}

// play lets events happen until all sessions have come.
func (r *run) play() {
	r.agenda.add(event{at: r.gap(), kind: arrival})
	r.agenda.add(event{at: r.c.Report.Seconds(), kind: report})
	r.agenda.add(event{kind: decision})
	if len(r.changes) > 0 {
		r.agenda.add(event{at: r.changes[0].At.Seconds(), kind: change})
	}
	for r.arrived < r.c.Sessions {
		e := r.agenda.next()
		r.now = e.at
		switch e.kind {
		case arrival:
			r.arrive()
			r.agenda.add(event{at: r.now + r.gap(), kind: arrival})
		case request:
			r.request(e.who)
		case answer:
			r.answer(e.who)
		case report:
			r.report()
			r.agenda.add(event{at: r.now + r.c.Report.Seconds(), kind: report})
		case decision:
			r.decision = r.admission.Update(admission.Loads{Nodes: r.loads})
			if p := r.c.RefuseAll; p > 0 {
				r.decision.New, r.decision.Established = p, p
			}
			r.agenda.add(event{at: r.now + r.decision.Next.Seconds(), kind: decision})
		case change:
			r.change()
		}
	}
}

// gap is the time until the next session comes.
func (r *run) gap() float64 { return r.arrivals.exponential(1 / (r.c.Capacity() * r.offered)) }

func (r *run) change() {
	c := r.changes[0]
	r.changes = r.changes[1:]
	if c.Offered > 0 {
		r.offered = c.Offered
	}
	if c.Speed > 0 {
		r.servers[c.Server].speed = c.Speed // from the next job on
	}
	if c.Leave || c.Join {
		r.backends[c.Server].Down = c.Leave
	}
	if len(r.changes) > 0 {
		r.agenda.add(event{at: r.changes[0].At.Seconds(), kind: change})
	}
}

func (r *run) arrive() {
	random := streamOf(r.c.Seed, uint64(r.arrived))
	r.arrived++
	n := r.length(&random)
	s := session{random: random, left: n, requests: n, server: -1, sent: r.now}
	if r.counts() {
		r.result.Offered++
	}
	var id int32
	if last := len(r.free) - 1; last >= 0 {
		id, r.free = r.free[last], r.free[:last]
		r.sessions[id] = s
	} else {
		id = int32(len(r.sessions))
		r.sessions = append(r.sessions, s)
	}
	r.request(id)
}

// length draws a session's number of requests.
func (r *run) length(random *stream) int32 {
	sure := 0.0
	if !r.c.Memoryless {
		sure = math.Floor(r.c.Requests / 3)
	}
	return int32(min(sure+float64(random.geometric(r.c.Requests-sure)), math.MaxInt32))
}

// request brings a session's request to admission, and from there to its server.
func (r *run) request(id int32) {
	s := &r.sessions[id]
	isNew := s.server < 0
	p := r.decision.Established
	if isNew {
		p = r.decision.New
	}
	refused := p > 0 && admission.ShareOf(p).Refuses(uint32(r.coin.next()>>32))
	if !refused && isNew {
		s.server = int16(r.choose()) //nolint:gosec // validate has seen to it
		refused = s.server < 0       // all have left
	}
	if bound := r.decision.Connections; bound > 0 && !refused && (isNew || !r.c.KeptConnections) {
		if refused = r.connections(int(s.server)) >= bound; refused && isNew {
			s.server = -1
		}
	}
	if refused {
		r.refuse(id)
		return
	}
	s.attempts = 0
	if isNew {
		r.servers[s.server].sessions++
	}
	server := &r.servers[s.server]
	if server.push(r.now, job{session: id, work: s.random.exponential(r.c.ServiceTime.Seconds())}) {
		r.serve(int32(s.server))
	}
}

// connections are a server's, as balance and a bound on connections see them.
func (r *run) connections(server int) int {
	if r.c.KeptConnections {
		return r.servers[server].sessions
	}
	return r.servers[server].queued()
}

func (r *run) choose() int {
	for i := range r.backends {
		b := &r.backends[i]
		b.Active, b.Load, b.Report = r.connections(i), r.loads[i], r.reports
		if r.c.Uncounted {
			b.Report = r.reports<<32 + uint64(r.arrived)
		}
	}
	return r.balance.Choose(time.Unix(0, 0), 0, r.backends)
}

// refuse lets the client send the request again, or ends the session.
func (r *run) refuse(id int32) {
	s := &r.sessions[id]
	again := r.c.RetryAfter.Seconds() * float64(int(1)<<min(s.attempts, 30))
	s.attempts++
	switch isNew := s.server < 0; {
	case isNew && int(s.attempts) > r.c.NewRetries:
		if r.counts() {
			r.result.Refused++
		}
		r.free = append(r.free, id)
		return
	case isNew: // nobody has promised anything yet: its patience begins when it is let in
		s.sent = r.now + again
	case r.now+again-s.sent >= r.c.Patience.Seconds():
		r.end(id, false, false)
		return
	}
	r.agenda.add(event{at: r.now + again, kind: request, who: id})
}

// serve begins with the next job of a server, if there is one.
func (r *run) serve(id int32) {
	s := &r.servers[id]
	for s.queued() > 0 {
		j := s.jobs[s.head]
		if r.c.Notices && r.now-r.sessions[j.session].sent > r.c.Patience.Seconds() {
			r.end(s.pop(r.now).session, false, true)
			continue
		}
		r.agenda.add(event{at: r.now + j.work/s.speed, kind: answer, who: id})
		return
	}
}

// answer is the end of a request.
func (r *run) answer(server int32) {
	j := r.servers[server].pop(r.now)
	s := &r.sessions[j.session]
	s.work += j.work
	if r.counts() {
		r.busy += j.work
		r.result.Answers++
		r.result.Waited += time.Duration((r.now - s.sent) * float64(time.Second))
	}
	switch s.left--; {
	case r.now-s.sent > r.c.Patience.Seconds():
		r.end(j.session, false, true)
	case s.left == 0:
		r.end(j.session, true, false)
	default:
		s.sent = r.now + s.random.exponential(r.c.ThinkTime.Seconds())
		r.agenda.add(event{at: s.sent, kind: request, who: j.session})
	}
	r.serve(server)
}

// end takes leave of a session that was let in.
func (r *run) end(id int32, completed, late bool) {
	s := &r.sessions[id]
	r.servers[s.server].sessions--
	r.free = append(r.free, id)
	if !r.counts() {
		return
	}
	long := float64(s.requests) > 2*r.c.Requests
	if long {
		r.result.Long++
	}
	if completed {
		r.result.Completed++
		if long {
			r.result.LongCompleted++
		}
		return
	}
	r.wasted += s.work
	r.result.Lost++
	if late {
		r.result.Late++
	}
}

// counts reports whether what happens now goes into the figures.
func (r *run) counts() bool { return r.now >= r.c.WarmUp.Seconds() }

// report is what the servers tell of their loads.
func (r *run) report() {
	r.reports++
	interval, patience := r.c.Report.Seconds(), r.c.Patience.Seconds()
	for i := range r.servers {
		measured := r.c.load(r.servers[i].parts(r.now, interval, patience))
		r.loads[i] = measured
		e, err := r.series[i].Observe(measured)
		if err == nil && !r.c.Unforecast {
			r.loads[i] = e.Value
		}
		r.trace.add(i, measured)
	}
	r.trace.step()
}

func (r *run) finish() Result {
	r.result.Time = time.Duration(max(0, r.now-r.c.WarmUp.Seconds()) * float64(time.Second))
	all := r.result.Time.Seconds() * float64(r.c.Servers)
	r.result.Busy, r.result.Wasted = ratio(r.busy, all), ratio(r.wasted, all)
	r.result.Trace = r.trace.rows
	return r.result
}
