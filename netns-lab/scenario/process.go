// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	netnslab "github.com/rehome-net/rehome/netns-lab"
)

// ProcessConfig describes the scene "process". Its zero value is the demo's, but for Command.
type ProcessConfig struct {
	// Command is how to run rehome, as in ClusterConfig.
	Command []string
	// Lab is the lab's name; "process" when empty.
	Lab string
	// CRIU is the program; see FindCRIU when empty.
	CRIU string
	// Moves is how often the server moves; 10 when zero. Rest is the time between two moves: restMoves when zero.
	Moves int
	Rest  time.Duration
	// Data is how much the server keeps in memory, in bytes; 200 MB when zero.
	Data int64
	// Clients is how many are connected; 50 when zero.
	Clients int
	// AloneMoves is how often CRIU alone moves the same server, for comparison; as Moves when zero, not at all when negative.
	AloneMoves int
	// Lazy lets the server move once more as often, with its memory following, for comparison.
	Lazy bool
	// Report gets a line for each thing that is done; may be nil.
	Report io.Writer
	// LogLevel is the agents'.
	LogLevel string
}

// redisClientRest is the time between a client's answer and its next question.
const redisClientRest = 10 * time.Millisecond

func (c ProcessConfig) withDefaults() ProcessConfig {
	if c.Lab == "" {
		c.Lab = "process"
	}
	if c.Moves == 0 {
		c.Moves = 10
	}
	if c.Rest == 0 {
		c.Rest = restMoves
	}
	if c.Data == 0 {
		c.Data = 200e6
	}
	if c.Clients == 0 {
		c.Clients = 50
	}
	if c.AloneMoves == 0 {
		c.AloneMoves = c.Moves
	}
	if c.Report == nil {
		c.Report = io.Discard
	}
	return c
}

// ProcessResult is what came of it, in the form that --output json prints.
type ProcessResult struct {
	Scenario string `json:"scenario"`
	OK       bool   `json:"ok"`
	// Problems says why OK is false.
	Problems []string `json:"problems,omitempty"`
	// Pauses are those of rehome's moves.
	Pauses
	// DataBytes is what the server keeps, DataEqual whether all of it was read back right after the last move.
	DataBytes int64 `json:"dataBytes"`
	DataEqual bool  `json:"dataEqual"`
	// Clients were connected all the time; CLICommands is how many commands redis-cli sent beside them.
	Clients     int   `json:"clients"`
	CLICommands int64 `json:"cliCommands"`
	// Lazy is what clients felt when the same server's memory followed it; nil unless asked for.
	Lazy *Pauses `json:"lazy,omitempty"`
	// CRIUAlone is what clients felt when CRIU alone moved the same server, in the same lab.
	CRIUAlone *Pauses `json:"criuAlone,omitempty"`
	// CRIUAlonePauseMillis is CRIUAlone's, to be compared with PauseMillis.
	CRIUAlonePauseMillis Milliseconds `json:"criuAlonePauseMillis"`
}

// Process plays the scene: an unmodified redis-server moves from host to host, with all its data and connections, while clients use it. Then
// CRIU alone moves another one. The error says that the scene could not be played; what went wrong for the clients is in the result.
func Process(ctx context.Context, cfg ProcessConfig) (_ *ProcessResult, err error) {
	cfg = cfg.withDefaults()
	if err := need("redis-server", "redis-cli"); err != nil {
		return nil, err
	}
	bed, err := StartProcessBed(ctx, ProcessBedConfig{
		Command: cfg.Command, Lab: cfg.Lab, Service: "store", Port: redisPort, CRIU: cfg.CRIU, LogLevel: cfg.LogLevel,
	})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, bed.Close()) }()
	s := &processScene{cfg: cfg, bed: bed, data: &redisData{noise: netnslab.Noise{Seed: 5, Size: cfg.Data}}}
	r, err := s.play(ctx, NewMigrator(bed), cfg.Moves)
	if err != nil {
		return nil, s.explain(err)
	}
	if cfg.Lazy {
		if err := s.lazily(ctx, r); err != nil {
			return nil, err
		}
	}
	if cfg.AloneMoves > 0 {
		if err := s.compare(ctx, r); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// redisPort is where the moving server listens.
const redisPort = 6379

type processScene struct {
	cfg  ProcessConfig
	bed  *ProcessBed
	data *redisData
}

func (s *processScene) say(format string, args ...any) {
	fmt.Fprintf(s.cfg.Report, format+"\n", args...)
}

// explain adds what the agents said.
func (s *processScene) explain(err error) error {
	for _, h := range []string{"entry", "a", "b"} {
		if log := s.bed.Logs(h); log != "" {
			s.say("--- %s\n%s", h, log)
		}
	}
	return err
}

// play moves a server of its own with one mover.
func (s *processScene) play(ctx context.Context, m ProcessMover, moves int) (*ProcessResult, error) {
	server, err := s.bed.Place(ctx, m, redisServer(redisPort))
	if err != nil {
		return nil, err
	}
	control, err := s.bed.dialRedis(ctx, m)
	if err != nil {
		return nil, fmt.Errorf("%w; the server says: %s", err, server.Log())
	}
	defer control.Close() //nolint:errcheck // nothing was written
	if err := s.data.load(control); err != nil {
		return nil, err
	}
	dial := func(ctx context.Context) (*net.TCPConn, error) { return s.bed.Dial(ctx, m.Address()) }
	clients, err := startAskers(ctx, s.cfg.Clients, redisClientRest, dial, func(client int) dialogue { return &redisDialogue{client: client, data: s.data} })
	if err != nil {
		return nil, err
	}
	defer clients.close()
	cli, err := startCLI(ctx, s.bed.host("client"), m.Address())
	if err != nil {
		return nil, err
	}
	s.say("%s: redis-server with %d MB, %d clients and redis-cli; it moves %d times", m.Name(), s.cfg.Data/1e6, s.cfg.Clients, moves)
	p, err := s.moves(ctx, m, server, clients, cli, moves)
	commands, cliErr := cli.stop()
	if err != nil {
		return nil, err
	}
	r := &ProcessResult{Scenario: "process", Pauses: *p, DataBytes: s.cfg.Data, Clients: s.cfg.Clients, CLICommands: commands}
	clients.close()
	if r.DataEqual, err = s.data.equal(control); err != nil {
		r.Problems = append(r.Problems, err.Error())
	}
	r.judge(moves, cliErr)
	s.say("%s: pause median %.0f ms, at most %.0f ms; %d errors, %d reconnects; data equal: %v",
		m.Name(), p.PauseMillis.Median, p.PauseMillis.Max, p.ClientErrors, p.Reconnects, r.DataEqual)
	return r, s.bed.killServers()
}

func (s *processScene) moves(ctx context.Context, m ProcessMover, server *Server, clients *askers, cli *counterCLI, n int) (*Pauses, error) {
	if err := cli.await(ctx); err != nil {
		return nil, err
	}
	return measurePauses(ctx, m, server, clients, n, s.cfg.Rest)
}

// judge sets OK.
func (r *ProcessResult) judge(moves int, cli error) {
	bad := func(format string, args ...any) { r.Problems = append(r.Problems, fmt.Sprintf(format, args...)) }
	if r.Moves != moves {
		bad("%d moves instead of %d", r.Moves, moves)
	}
	if r.ClientErrors != 0 || r.Reconnects != 0 {
		bad("%d client errors, %d reconnects, such as: %v", r.ClientErrors, r.Reconnects, r.Errors)
	}
	if cli != nil {
		r.ClientErrors++
		bad("%v", cli)
	}
	if !r.DataEqual {
		bad("the server's data differs after the moves")
	}
	r.OK = len(r.Problems) == 0
}

// lazily lets the memory of another one follow it.
func (s *processScene) lazily(ctx context.Context, r *ProcessResult) error {
	m := NewMigrator(s.bed)
	m.Lazy = true
	lazy, err := s.play(ctx, m, s.cfg.Moves)
	if err != nil {
		return s.explain(err)
	}
	r.Lazy = &lazy.Pauses
	for _, p := range lazy.Problems {
		r.Problems = append(r.Problems, "with memory that follows: "+p)
	}
	r.OK = len(r.Problems) == 0
	return nil
}

// compare lets CRIU alone move the same kind of server.
func (s *processScene) compare(ctx context.Context, r *ProcessResult) error {
	alone, err := NewCRIUAlone(s.bed, CRIUAloneConfig{})
	if err != nil {
		return err
	}
	peer, err := s.play(ctx, alone, s.cfg.AloneMoves)
	if err != nil {
		return err
	}
	r.CRIUAlone, r.CRIUAlonePauseMillis = &peer.Pauses, peer.PauseMillis
	return nil
}
