// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/rehome-net/rehome/agent/api"
	"github.com/rehome-net/rehome/dispatcher"
	"github.com/rehome-net/rehome/netns-lab/demo"
)

// ShedConfig describes the scene "shed": a server that is too loaded gives live connections away. Its zero value is the demo's, but for Command.
type ShedConfig struct {
	// Command is how to run rehome, as in ClusterConfig.
	Command []string
	// Lab is the lab's name; "shed" when empty.
	Lab string
	// Capacity is how many connections a server can bear, 400 when zero. Each says of itself how full it is.
	Capacity int
	// Limit is how long the server may take to cool down, 5 s when zero.
	Limit time.Duration
	// Watch is how long the clients go on afterwards, to see that nothing moves any more; 2 s when zero.
	Watch time.Duration
	// Sessions are how many sessions of RTSP a server can bear in the second act, 40 when zero; negative leaves it out.
	Sessions int
	// Report gets progress; may be nil.
	Report io.Writer
	// LogLevel is that of rehome's processes.
	LogLevel string
}

func (c ShedConfig) withDefaults() ShedConfig {
	setDefault(&c.Lab, "shed")
	setDefault(&c.Capacity, 400)
	setDefault(&c.Sessions, 40)
	setDefault(&c.Limit, 5*time.Second)
	setDefault(&c.Watch, 2*time.Second)
	if c.Report == nil {
		c.Report = io.Discard
	}
	return c
}

// The loads of the scene: the hot server's in the beginning, those at which it begins and ends to shed, and the one that it must come below.
const (
	hotLoad   = 0.95
	shedAbove = 0.85
	shedBelow = 0.65
	coolLoad  = 0.70
	shedRate  = 100 // connections per second
)

// ShedResult is what came of it, in the form that --output json prints.
type ShedResult struct {
	Scenario string   `json:"scenario"`
	OK       bool     `json:"ok"`
	Problems []string `json:"problems,omitempty"`
	// LoadBefore is the hot server's load when others could first take connections, LoadAfter its load at the end: the share of what it can bear that
	// it has, as its agent counts.
	LoadBefore float64 `json:"loadBefore"`
	LoadAfter  float64 `json:"loadAfter"`
	// Loads are those of all servers at the end.
	Loads map[string]float64 `json:"loads"`
	// Seconds is how long it took the hot server to come below 0.7.
	Seconds float64 `json:"seconds"`
	// Connections is how many there were, Moved how many moves their agents made; MovedLate those of them after the server had come below 0.65.
	Connections int `json:"connections"`
	Moved       int `json:"moved"`
	MovedLate   int `json:"movedLate"`
	// ClientErrors counts connections that broke or were echoed something else, of Echoes lines, and sessions that did. LongestMillis is the longest wait for an echo.
	ClientErrors  int     `json:"clientErrors"`
	Echoes        int     `json:"echoes"`
	LongestMillis float64 `json:"longestMillis"`
	// SecondsToCool is the longer of Seconds and that of the second act, SessionsMoved how many whole sessions its server gave away,
	// MediaPacketsLost what their users missed.
	SecondsToCool    float64 `json:"secondsToCool"`
	SessionsMoved    int     `json:"sessionsMoved"`
	MediaPacketsLost int     `json:"mediaPacketsLost"`
	// Media is the second act.
	Media *ShedSessionsResult `json:"media,omitempty"`
}

// Shed plays the scene: all clients' connections are at one server, which is nearly full, and the dispatcher moves them while they are used. In a
// second act the same happens to sessions with media (ShedSessions).
func Shed(ctx context.Context, cfg ShedConfig) (*ShedResult, error) {
	cfg = cfg.withDefaults()
	r, err := shedConnections(ctx, cfg)
	if err != nil {
		return nil, err
	}
	r.SecondsToCool = r.Seconds
	if cfg.Sessions < 0 {
		return r, ctx.Err()
	}
	if r.Media, err = ShedSessions(ctx, cfg); err != nil {
		return nil, err
	}
	r.OK = r.OK && r.Media.OK
	r.Problems = append(r.Problems, r.Media.Problems...)
	r.ClientErrors += r.Media.ClientErrors
	r.SecondsToCool = max(r.SecondsToCool, r.Media.SecondsToCool)
	r.SessionsMoved, r.MediaPacketsLost = r.Media.SessionsMoved, r.Media.MediaPacketsLost
	return r, ctx.Err()
}

// shedConnections is the first act.
func shedConnections(ctx context.Context, cfg ShedConfig) (_ *ShedResult, err error) {
	lab, err := startManaged(ctx, managedConfig{
		Command: cfg.Command, Lab: cfg.Lab, LogLevel: cfg.LogLevel, Service: demo.EchoService, Port: EchoPort,
	})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, lab.close()) }()
	s := &shed{cfg: cfg, lab: lab, result: ShedResult{Scenario: "shed", Loads: map[string]float64{}}}
	if err := s.play(ctx); err != nil {
		return nil, err
	}
	s.judge()
	return &s.result, ctx.Err()
}

type shed struct {
	cfg    ShedConfig
	lab    *managedLab
	result ShedResult
}

func (s *shed) say(format string, args ...any) {
	_, _ = fmt.Fprintf(s.cfg.Report, "shed: "+format+"\n", args...)
}

func (s *shed) play(ctx context.Context) error {
	if err := s.start(ctx); err != nil {
		return err
	}
	servers := s.lab.Servers()
	hot := servers[0]
	// A drained host gets no connections: so all of them come to the first, and stay there.
	for _, name := range servers[1:] {
		if _, _, err := s.lab.MoveAll(ctx, name, &api.MoveRequest{Drain: true}); err != nil {
			return err
		}
	}
	if err := s.until(ctx, func() (bool, error) { return s.drained(ctx, servers[1:]) }); err != nil {
		return fmt.Errorf("the dispatcher does not see that the others are drained: %w", err)
	}
	s.result.Connections = int(hotLoad * float64(s.cfg.Capacity))
	clients, err := connectChatters(ctx, s.lab.dial(s.lab.target()), s.result.Connections)
	if err != nil {
		return err
	}
	defer clients.close()
	if err := s.until(ctx, func() (bool, error) {
		n, err := s.connections(ctx, hot)
		return n == s.result.Connections, err
	}); err != nil {
		return fmt.Errorf("%s does not get all connections: %w", hot, err)
	}
	clients.chat(ctx)
	err = s.cool(ctx, hot, servers[1:])
	s.result.Echoes, s.result.ClientErrors, s.result.LongestMillis = clients.stop()
	return err
}

// start starts the servers and the dispatcher.
func (s *shed) start(ctx context.Context) error {
	s.lab.Cluster.cfg.Root = "/"
	s.lab.Cluster.cfg.Serve = []string{"--echo-capacity", fmt.Sprint(s.cfg.Capacity)}
	for _, name := range s.lab.Servers() {
		if err := s.lab.StartServer(ctx, name); err != nil {
			return err
		}
	}
	reports, err := s.lab.reports()
	if err != nil {
		return err
	}
	return s.lab.startDispatcher(ctx, dispatcher.ModeTCP, func(c *dispatcher.Config) {
		c.Reports = reports
		c.Shedding = dispatcher.SheddingConfig{Enabled: true, Above: shedAbove, Below: shedBelow, PerSecond: shedRate}
	})
}

// cool lets the others take connections, and watches the hot server.
func (s *shed) cool(ctx context.Context, hot string, others []string) error {
	n, err := s.connections(ctx, hot)
	if err != nil {
		return err
	}
	s.result.LoadBefore = s.load(n)
	s.say("%s has %d connections, and can bear %d", hot, n, s.cfg.Capacity)
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
	err = s.until(ctx, func() (bool, error) {
		n, err = s.connections(ctx, hot)
		return s.load(n) < coolLoad, err
	})
	s.result.Seconds = time.Since(begin).Seconds()
	if err != nil && ctx.Err() == nil {
		s.result.Problems = append(s.result.Problems, fmt.Sprintf("%s is at %.2f after %.1f s", hot, s.load(n), s.result.Seconds))
	}
	s.say("%s is at %.2f after %.2f s", hot, s.load(n), s.result.Seconds)
	return s.settle(ctx, hot)
}

// settle watches until what is on its way has arrived, and counts what moves after that.
func (s *shed) settle(ctx context.Context, hot string) error {
	if err := pause(ctx, s.cfg.Watch); err != nil {
		return err
	}
	before, err := s.moved(ctx)
	if err != nil {
		return err
	}
	if err := pause(ctx, s.cfg.Watch/2); err != nil {
		return err
	}
	if s.result.Moved, err = s.moved(ctx); err != nil {
		return err
	}
	s.result.MovedLate = s.result.Moved - before
	for _, name := range s.lab.Servers() {
		n, err := s.connections(ctx, name)
		if err != nil {
			return err
		}
		s.result.Loads[name] = s.load(n)
	}
	s.result.LoadAfter = s.result.Loads[hot]
	s.say("%d connections have moved; loads are %v", s.result.Moved, s.result.Loads)
	return nil
}

func (s *shed) load(connections int) float64 { return float64(connections) / float64(s.cfg.Capacity) }

// connections is how many a server has, as its agent counts.
func (s *shed) connections(ctx context.Context, server string) (int, error) {
	flows, err := s.lab.Flows(ctx, server)
	return len(flows), err
}

// moved is how many connections the agents have moved.
func (s *shed) moved(ctx context.Context) (int, error) {
	n := 0
	for _, name := range s.lab.Servers() {
		st, err := s.lab.Status(ctx, name)
		if err != nil {
			return 0, err
		}
		n += int(st.GetCounters().GetMovedOut())
	}
	return n, nil
}

// drained reports whether the dispatcher gives servers nothing.
func (s *shed) drained(ctx context.Context, servers []string) (bool, error) {
	values, err := s.lab.frontGauge(ctx, "rehome_dispatcher_backend_drained")
	for _, name := range servers {
		if values[name] != 1 {
			return false, err
		}
	}
	return true, err
}

// until waits for a condition, for as long as the server may take to cool down.
func (s *shed) until(ctx context.Context, holds func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Limit)
	defer cancel()
	for {
		if ok, err := holds(); err != nil || ok {
			return err
		}
		if err := pause(ctx, 10*time.Millisecond); err != nil {
			return err
		}
	}
}

// judge decides whether all is well.
func (s *shed) judge() {
	r := &s.result
	bad := func(format string, args ...any) { r.Problems = append(r.Problems, fmt.Sprintf(format, args...)) }
	if r.ClientErrors > 0 {
		bad("%d of %d clients saw an error", r.ClientErrors, r.Connections)
	}
	if r.LoadBefore < hotLoad-0.02 {
		bad("the server was at %.2f before", r.LoadBefore)
	}
	if r.LoadAfter >= coolLoad {
		bad("the server is at %.2f after", r.LoadAfter)
	}
	for name, l := range r.Loads {
		if l >= shedAbove {
			bad("%s is at %.2f", name, l)
		}
	}
	if r.MovedLate > 0 {
		bad("%d connections were moved when all was well", r.MovedLate)
	}
	if r.Echoes < r.Connections {
		bad("%d echoes on %d connections", r.Echoes, r.Connections)
	}
	r.OK = len(r.Problems) == 0
}
