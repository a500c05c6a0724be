// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/rehome-net/rehome/dispatcher"
	"github.com/rehome-net/rehome/netns-lab/demo"
)

// AnnounceConfig describes the scene "announce": an operator says on a server when it will fail. Its zero value is the demo's, but for Command.
type AnnounceConfig struct {
	// Command is how to run rehome, as in ClusterConfig.
	Command []string
	// Lab is the lab's name; "announce" when empty.
	Lab string
	// Connections are how many clients use, all servers together; 90 when zero.
	Connections int
	// In is how long before it fails a server announces that; 5 s when zero.
	In time.Duration
	// Report gets progress; may be nil.
	Report io.Writer
	// LogLevel is that of rehome's processes.
	LogLevel string
}

func (c AnnounceConfig) withDefaults() AnnounceConfig {
	setDefault(&c.Lab, "announce")
	setDefault(&c.Connections, 90)
	setDefault(&c.In, 5*time.Second)
	if c.Report == nil {
		c.Report = io.Discard
	}
	return c
}

const (
	// announceRate is how many connections leave in a second, so that some are left when it is called off.
	announceRate = 10
	// newcomers are how many clients come when a server has announced its failure, or has called it off.
	newcomers = 12
)

// AnnounceResult is what came of it, in the form that --output json prints.
type AnnounceResult struct {
	Scenario string   `json:"scenario"`
	OK       bool     `json:"ok"`
	Problems []string `json:"problems,omitempty"`
	// Connections is how many there were at the server that called its failure off, and at the one that failed, when they announced it.
	Connections [2]int `json:"connections"`
	// MillisToDrain is how long after the command the dispatcher kept new connections away, the longer of the two.
	MillisToDrain float64 `json:"millisToDrain"`
	// LeftBeforeCancel had left the first server when its operator called the failure off, and LeftAfterCancel left it a second later or more.
	LeftBeforeCancel int `json:"leftBeforeCancel"`
	LeftAfterCancel  int `json:"leftAfterCancel"`
	// BackAfterCancel are the new connections that the first server got afterwards.
	BackAfterCancel int `json:"backAfterCancel"`
	// SecondsToSpare is how long before its announced time the second server was empty. At that time its agent and its server were killed.
	SecondsToSpare float64 `json:"secondsToSpare"`
	// Misplaced are the new connections that came to a server which had announced its failure.
	Misplaced int `json:"misplaced"`
	// Evacuated and Refused are the dispatcher's counters: connections that were ordered away, and those of them that did not move at once.
	Evacuated int `json:"evacuated"`
	Refused   int `json:"refused"`
	// StateAtTheTime is what `rehome dispatcher status` says of the second server when its time has come.
	StateAtTheTime string `json:"stateAtTheTime"`
	// ClientErrors counts connections that broke or were echoed something else, of Echoes lines. LongestMillis is the longest wait for an echo.
	ClientErrors  int     `json:"clientErrors"`
	Echoes        int     `json:"echoes"`
	LongestMillis float64 `json:"longestMillis"`
}

// Announce plays the scene. One server announces a failure in ten minutes, and calls it off when some connections have left; another one announces a
// failure in seconds, and fails at that time. Clients use their connections all the while.
func Announce(ctx context.Context, cfg AnnounceConfig) (_ *AnnounceResult, err error) {
	cfg = cfg.withDefaults()
	lab, err := startManaged(ctx, managedConfig{Command: cfg.Command, Lab: cfg.Lab, LogLevel: cfg.LogLevel, Service: demo.EchoService, Port: EchoPort, Calm: true})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, lab.close()) }()
	a := &announcement{cfg: cfg, lab: lab, result: AnnounceResult{Scenario: "announce"}}
	if err := a.play(ctx); err != nil {
		return nil, err
	}
	a.judge()
	return &a.result, ctx.Err()
}

type announcement struct {
	cfg     AnnounceConfig
	lab     *managedLab
	clients []*chatters
	result  AnnounceResult
}

func (a *announcement) say(format string, args ...any) {
	_, _ = fmt.Fprintf(a.cfg.Report, "announce: "+format+"\n", args...)
}

func (a *announcement) play(ctx context.Context) error {
	a.lab.Cluster.cfg.Root = "/"
	for _, name := range a.lab.Servers() {
		if err := a.lab.StartServer(ctx, name); err != nil {
			return err
		}
	}
	reports, err := a.lab.reports()
	if err != nil {
		return err
	}
	if err := a.lab.startDispatcher(ctx, dispatcher.ModeTCP, func(c *dispatcher.Config) {
		c.Reports, c.Shedding = reports, dispatcher.SheddingConfig{PerSecond: announceRate}
	}); err != nil {
		return err
	}
	err = a.announce(ctx)
	for _, c := range a.clients {
		echoes, failed, longest := c.stop()
		a.result.Echoes += echoes
		a.result.ClientErrors += failed
		a.result.LongestMillis = max(a.result.LongestMillis, longest)
		c.close()
	}
	return err
}

func (a *announcement) announce(ctx context.Context) error {
	if _, err := a.come(ctx, a.cfg.Connections); err != nil {
		return err
	}
	servers := a.lab.Servers()
	if err := a.calledOff(ctx, servers[1]); err != nil {
		return fmt.Errorf("a failure that is called off: %w", err)
	}
	if err := a.happens(ctx, servers[0]); err != nil {
		return fmt.Errorf("a failure that happens: %w", err)
	}
	for name, to := range map[string]*int{"evacuated": &a.result.Evacuated, "shed_refused": &a.result.Refused} {
		n, err := a.lab.frontCounter(ctx, "rehome_dispatcher_"+name+"_total")
		if err != nil {
			return err
		}
		*to = int(n)
	}
	return nil
}

// calledOff is the first server's failure.
func (a *announcement) calledOff(ctx context.Context, server string) error {
	n, err := a.connections(ctx, server)
	if err != nil {
		return err
	}
	a.result.Connections[0] = n
	if err := a.command(ctx, server, "--in", "10m"); err != nil {
		return err
	}
	if err := a.awaitDrained(ctx, server, 1); err != nil {
		return err
	}
	if err := a.newcomersAvoid(ctx, server); err != nil {
		return err
	}
	if err := a.await(ctx, func() (bool, error) {
		left, err := a.connections(ctx, server)
		return left <= n/2, err
	}); err != nil {
		return fmt.Errorf("connections do not leave %s: %w", server, err)
	}
	if err := a.command(ctx, server, "--cancel"); err != nil {
		return err
	}
	if err := a.awaitDrained(ctx, server, 0); err != nil {
		return err
	}
	// What was ordered away before arrives within the time in which a dispatcher looks and a connection moves.
	if err := pause(ctx, time.Second/2); err != nil {
		return err
	}
	stay, err := a.connections(ctx, server)
	if err != nil {
		return err
	}
	a.result.LeftBeforeCancel = n - stay
	if err := pause(ctx, time.Second); err != nil {
		return err
	}
	later, err := a.connections(ctx, server)
	if err != nil {
		return err
	}
	a.result.LeftAfterCancel = stay - later
	clients, err := a.come(ctx, newcomers)
	if err != nil {
		return err
	}
	a.result.BackAfterCancel, err = a.at(ctx, server, clients)
	a.say("%s: %d of %d connections left, then it was called off: %d left later, %d of %d new ones came", server, n-stay, n, stay-later, a.result.BackAfterCancel, newcomers)
	return err
}

// happens is the second server's.
func (a *announcement) happens(ctx context.Context, server string) error {
	n, err := a.connections(ctx, server)
	if err != nil {
		return err
	}
	a.result.Connections[1] = n
	fails := time.Now().Add(a.cfg.In)
	if err := a.command(ctx, server, "--in", a.cfg.In.String()); err != nil {
		return err
	}
	if err := a.awaitDrained(ctx, server, 1); err != nil {
		return err
	}
	if err := a.newcomersAvoid(ctx, server); err != nil {
		return err
	}
	for n > 0 && time.Now().Before(fails) {
		if n, err = a.connections(ctx, server); err == nil {
			err = pause(ctx, 10*time.Millisecond)
		}
		if err != nil {
			return err
		}
	}
	a.result.SecondsToSpare = time.Until(fails).Seconds()
	a.say("%s: %d connections are left %.1f s before it fails", server, n, a.result.SecondsToSpare)
	if err := pause(ctx, time.Until(fails)); err != nil {
		return err
	}
	if err := a.await(ctx, func() (bool, error) {
		a.result.StateAtTheTime, err = a.state(ctx, server)
		return a.result.StateAtTheTime == "down", err
	}); err != nil && ctx.Err() != nil {
		return err
	}
	if err := errors.Join(a.lab.KillAgent(server), a.lab.KillServer(server)); err != nil {
		return err
	}
	return pause(ctx, 2*chatEvery) // every client notices whether its server is there
}

// come has so many more clients connect and use their connections.
func (a *announcement) come(ctx context.Context, n int) (*chatters, error) {
	c, err := connectChatters(ctx, a.lab.dial(a.lab.target()), n)
	if err != nil {
		return nil, err
	}
	a.clients = append(a.clients, c)
	c.chat(ctx)
	return c, nil
}

// newcomersAvoid has new clients come, and counts those that come to a server.
func (a *announcement) newcomersAvoid(ctx context.Context, server string) error {
	clients, err := a.come(ctx, newcomers)
	if err != nil {
		return err
	}
	n, err := a.at(ctx, server, clients)
	a.result.Misplaced += n
	return err
}

// at counts the clients whose connections a server has.
func (a *announcement) at(ctx context.Context, server string, clients *chatters) (n int, err error) {
	flows, err := a.lab.Flows(ctx, server)
	for _, f := range flows {
		if slices.ContainsFunc(clients.conns, func(c net.Conn) bool { return strings.HasPrefix(f.GetFlow(), c.LocalAddr().String()+"-") }) {
			n++
		}
	}
	return n, err
}

func (a *announcement) connections(ctx context.Context, server string) (int, error) {
	flows, err := a.lab.Flows(ctx, server)
	return len(flows), err
}

// command runs "rehome announce" on a server, as its operator does.
func (a *announcement) command(ctx context.Context, server string, args ...string) error {
	args = append([]string{"announce", "--agent", ControlSocket(a.cfg.Lab, server)}, args...)
	out, err := a.rehome(ctx, server, args...)
	a.say("%s: rehome announce %s: %s", server, strings.Join(args[3:], " "), strings.TrimSpace(out))
	return err
}

// rehome runs a command of rehome's on a host.
func (a *announcement) rehome(ctx context.Context, host string, args ...string) (string, error) {
	h, err := a.lab.Lab.Host(host)
	if err != nil {
		return "", err
	}
	out, err := h.Command(ctx, a.cfg.Command[0], append(slices.Clone(a.cfg.Command[1:]), args...)...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("rehome %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return string(out), err
}

// state is what the dispatcher tells its operator of a server.
func (a *announcement) state(ctx context.Context, server string) (string, error) {
	out, err := a.rehome(ctx, FrontHost, "dispatcher", "status", "--output", "json", "--control", ControlSocket(a.cfg.Lab, FrontHost))
	if err != nil {
		return "", err
	}
	var st struct {
		Pools []struct {
			Backends []struct{ Host, State string }
		}
	}
	if err := json.Unmarshal([]byte(out), &st); err != nil {
		return "", err
	}
	for _, p := range st.Pools {
		for _, b := range p.Backends {
			if b.Host == server {
				return b.State, nil
			}
		}
	}
	return "", fmt.Errorf("the dispatcher does not know %s", server)
}

// awaitDrained waits until the dispatcher keeps new connections away from a server, or does not any more.
func (a *announcement) awaitDrained(ctx context.Context, server string, want float64) error {
	began := time.Now()
	err := a.await(ctx, func() (bool, error) {
		values, err := a.lab.frontGauge(ctx, "rehome_dispatcher_backend_drained")
		return values[server] == want, err
	})
	if err != nil {
		return fmt.Errorf("the dispatcher does not hear what %s announces: %w", server, err)
	}
	if want == 1 {
		a.result.MillisToDrain = max(a.result.MillisToDrain, float64(time.Since(began).Microseconds())/1000)
	}
	return nil
}

// await waits for a condition.
func (a *announcement) await(ctx context.Context, holds func() (bool, error)) error {
	return holdsWithin(ctx, startTimeout, holds)
}

// judge decides whether all is well.
func (a *announcement) judge() {
	r := &a.result
	bad := func(format string, args ...any) { r.Problems = append(r.Problems, fmt.Sprintf(format, args...)) }
	if r.ClientErrors > 0 {
		bad("%d clients saw an error", r.ClientErrors)
	}
	if r.Connections[0] < newcomers || r.Connections[1] < newcomers {
		bad("the servers had %v connections", r.Connections)
	}
	if r.Misplaced > 0 {
		bad("%d new connections came to a server that had announced its failure", r.Misplaced)
	}
	if r.LeftBeforeCancel == 0 || r.LeftBeforeCancel == r.Connections[0] || r.LeftAfterCancel > 0 {
		bad("%d of %d connections left before the failure was called off, %d after it", r.LeftBeforeCancel, r.Connections[0], r.LeftAfterCancel)
	}
	if r.BackAfterCancel == 0 {
		bad("no new connection came to the server that had called its failure off")
	}
	if r.SecondsToSpare <= 0 {
		bad("the server was not empty when its time came")
	}
	if r.StateAtTheTime != "down" {
		bad("the dispatcher says that the server is %s when its time has come", r.StateAtTheTime)
	}
	if want := r.LeftBeforeCancel + r.Connections[1]; r.Evacuated < want {
		bad("the dispatcher has counted %d connections that it ordered away, of %d that left", r.Evacuated, want)
	}
	if r.Echoes < a.cfg.Connections {
		bad("%d echoes", r.Echoes)
	}
	r.OK = len(r.Problems) == 0
}
