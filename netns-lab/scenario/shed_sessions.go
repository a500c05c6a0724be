// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/rehome-net/rehome/agent"
	"github.com/rehome-net/rehome/agent/api"
	"github.com/rehome-net/rehome/dispatcher"
	netnslab "github.com/rehome-net/rehome/netns-lab"
)

// ShedSessionsResult is what came of ShedSessions.
type ShedSessionsResult struct {
	OK       bool     `json:"ok"`
	Problems []string `json:"problems,omitempty"`
	// Sessions are those of Clients programs: gortsplib's client and ffmpeg, which play and record in turns; or sipp, which calls.
	Sessions int            `json:"sessions"`
	Clients  map[string]int `json:"clients"`
	// LoadBefore and LoadAfter are the hot server's, SecondsToCool how long it took to come below 0.7.
	LoadBefore    float64 `json:"loadBefore"`
	LoadAfter     float64 `json:"loadAfter"`
	SecondsToCool float64 `json:"secondsToCool"`
	// SessionsMoved were shed, SessionsDrained left when an operator drained the server afterwards, SessionsMigrated were moved by name.
	SessionsMoved    int `json:"sessionsMoved"`
	SessionsDrained  int `json:"sessionsDrained"`
	SessionsMigrated int `json:"sessionsMigrated"`
	// SessionsStayed could not be moved, because the target refused at the last moment, and went on where they were.
	SessionsStayed int `json:"sessionsStayed"`
	// MediaPackets are the datagrams that both sides sent, and MediaPacketsLost those of them that did not arrive, or arrived where the session was
	// not: by the sequence numbers that clients saw, and by what servers counted of what clients sent. MediaPacketsHeld waited at the dispatcher.
	MediaPackets     int `json:"mediaPackets"`
	MediaPacketsLost int `json:"mediaPacketsLost"`
	MediaPacketsHeld int `json:"mediaPacketsHeld"`
	// OutOfOrder counts packets that came behind a later one, Restarts the streams that did not go on as they were (SSRC, timestamp).
	OutOfOrder int `json:"outOfOrder"`
	Restarts   int `json:"restarts"`
	// LongestMillis is the longest time between two packets of a stream that clients saw; the servers send each 20 ms.
	LongestMillis float64 `json:"longestMillis"`
	// ClientErrors counts sessions whose client saw an error, or was not answered at the end.
	ClientErrors int `json:"clientErrors"`
}

// ShedSessions plays the second act of Shed: the sessions are RTSP's, or calls of SIP over TCP, with media both ways, at one server that is nearly full. The dispatcher
// moves whole sessions; then an operator drains the server, and the rest follow.
func ShedSessions(ctx context.Context, cfg ShedConfig) (_ *ShedSessionsResult, err error) {
	cfg = cfg.withDefaults()
	if cfg.Sessions < 8 {
		return nil, fmt.Errorf("shed: %d sessions: want at least 8", cfg.Sessions)
	}
	keys, err := os.MkdirTemp("", "rh-keys-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(keys)) }()
	s := &shedSessions{cfg: cfg, keys: filepath.Join(keys, "keys")}
	if err := writeKey(s.keys); err != nil {
		return nil, err
	}
	lab := cfg.Lab + "m"
	s.lab, err = StartMedia(ctx, MediaFarmConfig{
		Command: cfg.Command, Lab: lab, Agents: true, Hold: time.Second, LogLevel: cfg.LogLevel,
		Agent: s.report(MediaTopology(lab)), Dispatcher: s.adjust,
	})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.lab.Close()) }()
	if err := s.play(ctx); err != nil {
		return nil, err
	}
	s.judge()
	if !s.result.OK {
		s.say("%s", s.lab.complaints())
	}
	return &s.result, ctx.Err()
}

type shedSessions struct {
	cfg     ShedConfig
	keys    string
	lab     *Media
	servers map[string]*mediaServer
	result  ShedSessionsResult
}

func (s *shedSessions) say(format string, args ...any) {
	_, _ = fmt.Fprintf(s.cfg.Report, "shed: "+format+"\n", args...)
}

// calmInterval is the time between heartbeats: one machine is all hosts and runs all clients, and who is late for some milliseconds is not gone.
const calmInterval = 100 * time.Millisecond

// report returns what has agents report.
func (s *shedSessions) report(topo netnslab.Topology) func(*agent.Config) {
	report := reportsOf(topo, s.keys)
	return func(c *agent.Config) {
		report(c)
		c.Report.Interval = calmInterval
	}
}

// adjust makes the dispatcher's configuration that of linked servers, which shed.
func (s *shedSessions) adjust(c *dispatcher.Config) {
	name := string(s.cfg.Signalling)
	c.Services = slices.DeleteFunc(c.Services, func(v dispatcher.ServiceConfig) bool { return v.Name != name })
	c.Pools = slices.DeleteFunc(c.Pools, func(p dispatcher.PoolConfig) bool { return p.Name != name })
	c.Pools[0].Delivery = dispatcher.DeliveryLinked
	// All clients are one host's.
	c.Services[0].Sticky = dispatcher.StickyNone
	c.Reports = reportsHeard(s.lab.host(FrontHost), s.keys)
	c.Reports.Interval = calmInterval
	c.Shedding = dispatcher.SheddingConfig{Enabled: true, Above: shedAbove, Below: shedBelow, PerSecond: shedRate}
}

func (s *shedSessions) play(ctx context.Context) error {
	if err := s.start(ctx); err != nil {
		return err
	}
	hot, others := s.lab.Servers()[0], s.lab.Servers()[1:]
	for _, name := range others {
		if _, _, err := s.lab.MoveAll(ctx, name, &api.MoveRequest{Drain: true}); err != nil {
			return err
		}
	}
	if err := holdsWithin(ctx, startTimeout, func() (bool, error) { return s.drained(ctx, others) }); err != nil {
		return fmt.Errorf("the dispatcher does not see that the others are drained: %w", err)
	}
	capture, err := s.lab.captureStreams()
	if err != nil {
		return err
	}
	s.result.Sessions = int(hotLoad * float64(s.cfg.Sessions))
	viewers, err := s.lab.startViewers(ctx, s.result.Sessions, s.cfg.Signalling)
	s.result.Clients = viewers.kinds()
	if err == nil {
		if err = holdsWithin(ctx, startTimeout, func() (bool, error) { return s.live(hot) == s.result.Sessions, nil }); err != nil {
			err = fmt.Errorf("%s has %d sessions of %d: %w", hot, s.live(hot), s.result.Sessions, err)
		}
	}
	if err == nil {
		err = s.cool(ctx, hot, others)
	}
	for _, server := range s.servers {
		server.HangUp()
	}
	s.result.ClientErrors = viewers.stop(ctx)
	for _, text := range viewers.complaints {
		s.say("%s", text)
	}
	if err == nil {
		err = holdsWithin(ctx, startTimeout, func() (bool, error) { return s.live(s.lab.Servers()...) == 0, nil })
	}
	streams, failed := capture.close()
	if err = errors.Join(err, failed); err != nil {
		return errors.Join(err, errors.New(strings.Join(viewers.complaints, "; ")))
	}
	s.count(streams)
	return nil
}

// start starts the servers, the dispatcher and the gateway.
func (s *shedSessions) start(ctx context.Context) error {
	s.servers = make(map[string]*mediaServer)
	for _, name := range s.lab.Servers() {
		server, err := s.lab.serveStreams(ctx, name, s.cfg.Signalling, s.cfg.Sessions)
		if err != nil {
			return err
		}
		s.servers[name] = server
	}
	if err := s.lab.StartDispatcher(ctx); err != nil {
		return err
	}
	if err := holdsWithin(ctx, startTimeout, func() (bool, error) {
		families, err := scrape(ctx, s.lab.host(FrontHost), frontMetrics)
		up := perBackend(families["rehome_dispatcher_backend_up"])
		return len(up) == len(s.lab.Servers()) && !slices.ContainsFunc(s.lab.Servers(), func(name string) bool { return up[name] != 1 }), err
	}); err != nil {
		return fmt.Errorf("the dispatcher does not reach all servers: %w", err)
	}
	_, err := s.lab.StartGateway(ctx)
	return err
}

// cool lets the others take sessions, and watches the hot server; then it is drained.
func (s *shedSessions) cool(ctx context.Context, hot string, others []string) error {
	s.result.LoadBefore = s.load(hot)
	s.say("%s has %d sessions, and can bear %d", hot, s.live(hot), s.cfg.Sessions)
	for _, name := range others {
		client, err := s.lab.Client(name)
		if err != nil {
			return err
		}
		if _, err := client.Undrain(ctx, &api.UndrainRequest{}); err != nil {
			return err
		}
	}
	begin := time.Now()
	err := s.until(ctx, func() (bool, error) { return s.load(hot) < coolLoad, nil })
	s.result.SecondsToCool = time.Since(begin).Seconds()
	if err != nil && ctx.Err() == nil {
		s.result.Problems = append(s.result.Problems, fmt.Sprintf("%s is at %.2f after %.1f s", hot, s.load(hot), s.result.SecondsToCool))
	}
	s.say("%s is at %.2f after %.2f s", hot, s.load(hot), s.result.SecondsToCool)
	if err := pause(ctx, s.cfg.Watch); err != nil {
		return err
	}
	s.result.LoadAfter, s.result.SessionsMoved = s.load(hot), s.live(others...)
	left := s.live(hot)
	if _, _, err := s.lab.MoveAll(ctx, hot, &api.MoveRequest{Drain: true}); err != nil {
		return err
	}
	if err := holdsWithin(ctx, startTimeout, func() (bool, error) { return s.live(hot) == 0, nil }); err != nil {
		s.result.Problems = append(s.result.Problems, fmt.Sprintf("%s has %d sessions after it was drained", hot, s.live(hot)))
	}
	s.result.SessionsDrained = left - s.live(hot)
	s.say("%d sessions were shed, %d left with the drain", s.result.SessionsMoved, s.result.SessionsDrained)
	s.servers[others[1]].Refuse(true)
	if err := s.migrate(ctx, others[0], others[1]); err != nil {
		return err
	}
	s.servers[others[1]].Refuse(false)
	if err := s.migrate(ctx, others[0], others[1]); err != nil {
		return err
	}
	if err := pause(ctx, s.cfg.Watch/2); err != nil {
		return err
	}
	families, err := scrape(ctx, s.lab.host(FrontHost), frontMetrics)
	if err != nil {
		return err
	}
	for _, m := range families["rehome_dispatcher_media_held_total"].GetMetric() {
		s.result.MediaPacketsHeld = int(m.GetCounter().GetValue())
	}
	return nil
}

// migrate has an operator move one session.
func (s *shedSessions) migrate(ctx context.Context, from, to string) error {
	flows, err := s.lab.Flows(ctx, from)
	if err != nil || len(flows) == 0 {
		return errors.Join(err, fmt.Errorf("%d sessions at %s", len(flows), from))
	}
	moved, _, err := s.lab.MoveAll(ctx, from, &api.MoveRequest{Flow: flows[0].GetFlow(), To: to})
	if err != nil {
		return err
	}
	for _, m := range moved {
		switch m.GetOutcome() {
		case agent.OutcomeMoved:
			s.result.SessionsMigrated++
		case agent.OutcomeResumed:
			s.result.SessionsStayed++
		default:
			s.say("%s: %s: %s", m.GetFlow(), m.GetOutcome(), m.GetError())
		}
	}
	return nil
}

// count compares what was sent with what arrived.
func (s *shedSessions) count(streams streamTally) {
	r := &s.result
	rtp, rtcp := 0, 0
	came := make(map[netip.AddrPort]int)
	for _, server := range s.servers {
		t := server.Total()
		for client, n := range t.From {
			came[client] += n
		}
		rtp += t.RTP
		rtcp += t.RTCP
		r.OutOfOrder += t.Late
	}
	r.MediaPackets = streams.heard + streams.missing + streams.sentRTP + streams.sentRTCP
	r.MediaPacketsLost = streams.missing + max(streams.sentRTP-rtp, 0) + max(streams.sentRTCP-rtcp, 0)
	r.OutOfOrder += streams.late
	r.Restarts = streams.restarts
	r.LongestMillis = float64(streams.longest.Microseconds()) / 1000
	s.say("clients heard %d packets of media and missed %d; servers have %d of %d of RTP, %d of %d of RTCP; %d waited",
		streams.heard, streams.missing, rtp, streams.sentRTP, rtcp, streams.sentRTCP, r.MediaPacketsHeld)
	for client, n := range streams.sent {
		if came[client] < n {
			r.Problems = append(r.Problems, fmt.Sprintf("%v has sent %d packets, of which %d arrived", client, n, came[client]))
		}
	}
	if streams.unread > 0 {
		r.Problems = append(r.Problems, fmt.Sprintf("%d packets were not counted: the machine is too busy", streams.unread))
	}
}

func (s *shedSessions) load(server string) float64 {
	return float64(s.live(server)) / float64(s.cfg.Sessions)
}

// live is how many sessions servers have.
func (s *shedSessions) live(servers ...string) (n int) {
	for _, name := range servers {
		n += s.servers[name].Live()
	}
	return n
}

// drained reports whether the dispatcher gives servers nothing.
func (s *shedSessions) drained(ctx context.Context, servers []string) (bool, error) {
	families, err := scrape(ctx, s.lab.host(FrontHost), frontMetrics)
	values := perBackend(families["rehome_dispatcher_backend_drained"])
	return !slices.ContainsFunc(servers, func(name string) bool { return values[name] != 1 }), err
}

// until waits for a condition, for as long as the server may take to cool down.
func (s *shedSessions) until(ctx context.Context, holds func() (bool, error)) error {
	return (&shed{cfg: s.cfg}).until(ctx, holds)
}

// judge decides whether all is well.
func (s *shedSessions) judge() {
	r := &s.result
	bad := func(format string, args ...any) { r.Problems = append(r.Problems, fmt.Sprintf(format, args...)) }
	if r.ClientErrors > 0 {
		bad("%d of %d sessions' clients saw an error", r.ClientErrors, r.Sessions)
	}
	if r.LoadBefore < hotLoad-0.05 {
		bad("the media server was at %.2f before", r.LoadBefore)
	}
	if r.LoadAfter >= coolLoad {
		bad("the media server is at %.2f after", r.LoadAfter)
	}
	if r.SessionsMoved == 0 || r.SessionsMoved+r.SessionsDrained != r.Sessions {
		bad("%d sessions were shed and %d drained, of %d", r.SessionsMoved, r.SessionsDrained, r.Sessions)
	}
	if r.SessionsMigrated != 1 || r.SessionsStayed != 1 {
		bad("%d sessions were moved by name, and %d stayed that were refused", r.SessionsMigrated, r.SessionsStayed)
	}
	if r.MediaPacketsLost > 0 {
		bad("%d of %d packets of media were lost", r.MediaPacketsLost, r.MediaPackets)
	}
	if r.Restarts > 0 {
		bad("%d streams did not go on as they were", r.Restarts)
	}
	if r.MediaPackets < 50*r.Sessions {
		bad("%d packets of media in %d sessions", r.MediaPackets, r.Sessions)
	}
	r.OK = len(r.Problems) == 0
}
