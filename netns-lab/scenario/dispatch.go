// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"time"

	"github.com/rehome-net/rehome/agent"
)

// DispatchConfig describes the scene "dispatch". Its zero value is the demo's, but for Command and Front.
type DispatchConfig struct {
	// Command is how to run rehome, as in ClusterConfig.
	Command []string
	// Lab is the lab's name; "dispatch" when empty.
	Lab string
	// Front is what dispatches.
	Front Front
	// Downloads run while the front is killed; 100 when zero.
	Downloads int
	// Adjust changes an agent's configuration before it is written; may be nil.
	Adjust func(*agent.Config)
	// Report gets a line for each thing that is done; may be nil.
	Report io.Writer
	// LogLevel is the agents'.
	LogLevel string
}

// DispatchResult is what came of it, in the form that --output json prints.
type DispatchResult struct {
	Scenario string `json:"scenario"`
	Front    string `json:"front"`
	// OK means that nothing failed, every delivery was used, nothing was relayed, and no check was left out for want of a program.
	OK bool `json:"ok"`
	// Failed counts checks, requests and downloads that failed; Problems says which.
	Failed   int      `json:"failed"`
	Problems []string `json:"problems,omitempty"`
	// Checks counts the checks with real clients, Skipped those that could not be made.
	Checks  int `json:"checks"`
	Skipped int `json:"skipped"`
	// Missing are the programs that some of those need.
	Missing []string `json:"missing,omitempty"`
	// Requests are wrk's, each with a connection of its own.
	Requests          int64   `json:"requests"`
	RequestsPerSecond float64 `json:"requestsPerSecond"`
	// DescriptorRequests came to a server that takes descriptors.
	DescriptorRequests int `json:"descriptorRequests"`
	// Downloads ran while the front was killed. Retransmitted is what all hosts sent again meanwhile, in segments.
	Downloads     int `json:"downloads"`
	Retransmitted int `json:"retransmitted"`
	// Handoffs are those of each kind of delivery, HandoffMicros how long they took, as the front says.
	Handoffs      map[string]int64 `json:"handoffs,omitempty"`
	HandoffMicros Quantiles        `json:"handoffMicros"`
	// BytesRelayed is what the front has passed on in user space, as it says.
	BytesRelayed int64 `json:"dispatcherBytesRelayed"`
}

// Handoffs is what a front says of its work.
type Handoffs struct {
	// Delivered counts handoffs by delivery, Micros says how long they took.
	Delivered map[string]int64
	Micros    Quantiles
	// BytesRelayed is what it has passed on in user space.
	BytesRelayed int64
	// Deliveries are those that it was to use.
	Deliveries []string
}

// FrontCounter is a Front that counts its handoffs.
type FrontCounter interface {
	Front
	Handoffs(ctx context.Context, f *Farm) (Handoffs, error)
}

// FrontDrainer is a Front that can take a backend out of service without breaking its connections, and put it back.
type FrontDrainer interface {
	Front
	Drain(ctx context.Context, f *Farm, host string) error
	Undrain(ctx context.Context, f *Farm, host string) error
}

// Dispatch plays the scene: real clients use all services through a front, many requests come, the front is killed and started again under
// downloads, and a backend is drained, if the front can do that. The error says that the scene could not be played; what
// went wrong for the clients is in the result.
func Dispatch(ctx context.Context, cfg DispatchConfig) (_ *DispatchResult, err error) {
	if cfg.Front == nil {
		return nil, errors.New("dispatch: no front")
	}
	if cfg.Downloads == 0 {
		cfg.Downloads = 100
	}
	if cfg.Report == nil {
		cfg.Report = io.Discard
	}
	if err := need(append(cfg.Front.Programs(), "wrk")...); err != nil {
		return nil, err
	}
	farm, err := StartFarm(ctx, FarmConfig{Command: cfg.Command, Lab: cfg.Lab, Agents: true, Adjust: cfg.Adjust, LogLevel: cfg.LogLevel})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, farm.Close()) }()
	s := &dispatch{cfg: cfg, farm: farm, result: DispatchResult{Scenario: "dispatch", Front: cfg.Front.Name()}}
	if front, ok := cfg.Front.(descriptorFront); ok {
		socket := farm.path(NginxHost, "fd.sock")
		if s.given, err = serveDescriptors(socket); err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, s.given.close()) }()
		front.giveTo(socket)
	}
	if err := cfg.Front.Start(ctx, farm); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, cfg.Front.Stop()) }()
	for _, act := range []func(context.Context) error{s.clients, s.descriptors, s.load, s.count, s.restart, s.drain, s.count} {
		if err := act(ctx); err != nil {
			return nil, err
		}
	}
	s.result.judge(s.deliveries)
	return &s.result, nil
}

type dispatch struct {
	cfg    DispatchConfig
	farm   *Farm
	result DispatchResult
	// given is nil unless the front gives connections to it.
	given *descriptorServer
	// deliveries are those that the front was to use.
	deliveries []string
}

func (s *dispatch) say(format string, args ...any) { fmt.Fprintf(s.cfg.Report, format+"\n", args...) }

// bad notes what failed.
func (s *dispatch) bad(n int, format string, args ...any) {
	if n == 0 {
		return
	}
	s.result.Failed += n
	s.result.Problems = append(s.result.Problems, fmt.Sprintf(format, args...))
	s.say(format, args...)
}

// clients lets real clients use every service.
func (s *dispatch) clients(ctx context.Context) error {
	for _, check := range ClientChecks() {
		_, missing := exec.LookPath(check.Program)
		err := missing
		if missing == nil {
			err = check.Run(ctx, s.farm, s.cfg.Front)
		}
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case missing != nil || errors.Is(err, ErrNotServed):
			s.result.Skipped++
			if missing != nil {
				s.result.Missing = append(s.result.Missing, check.Program)
			}
			s.say("%-24s skipped: %v", check.Name, err)
		case err != nil:
			s.result.Checks++
			s.bad(1, "%s: %v", check.Name, err)
		default:
			s.result.Checks++
			s.say("%-24s ok, by %s", check.Name, check.Service.Host())
		}
	}
	return nil
}

// load makes many connections.
func (s *dispatch) load(ctx context.Context) error {
	l, err := MeasureLoad(ctx, s.farm, s.cfg.Front, LoadConfig{NewConnections: true, Time: 2 * time.Second})
	if err != nil {
		return err
	}
	s.result.Requests, s.result.RequestsPerSecond = l.Requests, l.PerSecond
	s.say("%d requests, each with a new connection: %.0f/s", l.Requests, l.PerSecond)
	s.bad(int(l.Failed()), "%d of %d requests failed", l.Failed(), l.Requests)
	return nil
}

// restart kills the front for two seconds.
func (s *dispatch) restart(ctx context.Context) error {
	r, err := MeasureRestart(ctx, s.farm, s.cfg.Front, RestartConfig{Downloads: s.cfg.Downloads})
	if err != nil {
		return err
	}
	s.result.Downloads, s.result.Retransmitted = r.Downloads, r.Retransmitted
	s.say("%d downloads while the front was dead for two seconds: %d failed, %d segments sent again", r.Downloads, r.Failed, r.Retransmitted)
	s.bad(r.Failed, "%d downloads failed, such as: %v", r.Failed, r.Problems)
	return nil
}

// keptConnections is how many connections there are when a backend is drained.
const keptConnections = 50

// drain empties a backend of the demo server and puts it back; its connections, and all services, go on.
func (s *dispatch) drain(ctx context.Context) error {
	d, ok := s.cfg.Front.(FrontDrainer)
	if !ok {
		return nil
	}
	kept, err := openKept(ctx, s.farm, d, keptConnections)
	if err != nil {
		return err
	}
	defer kept.close()
	if err := d.Drain(ctx, s.farm, LinkedHost); err != nil {
		return err
	}
	failed := kept.ask()
	s.bad(len(failed), "%d of %d kept connections failed when %s was drained, such as: %v", len(failed), keptConnections, LinkedHost, errors.Join(failed...))
	for _, service := range services() {
		if err := s.farm.Ask(ctx, d, service); err != nil {
			s.bad(1, "%s, while %s is drained: %v", service, LinkedHost, err)
		}
	}
	s.say("%s was drained of %d kept connections", LinkedHost, keptConnections)
	if err := d.Undrain(ctx, s.farm, LinkedHost); err != nil {
		return err
	}
	if err := s.farm.Ask(ctx, d, Linked); err != nil {
		s.bad(1, "%s, after its return: %v", LinkedHost, err)
	}
	return nil
}

// count adds what the front has counted since it was started.
func (s *dispatch) count(ctx context.Context) error {
	c, ok := s.cfg.Front.(FrontCounter)
	if !ok {
		return nil
	}
	h, err := c.Handoffs(ctx, s.farm)
	if err != nil {
		return err
	}
	if s.result.Handoffs == nil {
		s.result.Handoffs, s.result.HandoffMicros = make(map[string]int64), h.Micros
	}
	for delivery, n := range h.Delivered {
		s.result.Handoffs[delivery] += n
	}
	s.result.BytesRelayed += h.BytesRelayed
	s.deliveries = h.Deliveries
	s.say("handoffs: %v, median %d us, p99 %d us", h.Delivered, h.Micros.Median, h.Micros.P99)
	return nil
}
