// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// PlayMediaConfig describes the scene "media". Its zero value is the demo's, but for Command.
type PlayMediaConfig struct {
	// Command is how to run rehome, as in ClusterConfig.
	Command []string
	// Lab is the lab's name; "media" when empty.
	Lab string
	// Work is what the clients do; 12 calls, 6 sessions of each kind of RTSP and 3 interleaved ones, two transfers in each mode of FTP and 12 sessions of DNS
	// when zero.
	Work MediaWork
	// Direct leaves the dispatcher out: all packets go to one server, and a Listener hears the gateway.
	Direct bool
	// Hold is the gateway's, as in MediaFarmConfig; 1 s when zero, because one machine is all hosts and runs all clients' programs.
	Hold time.Duration
	// Report gets a line for each thing that is done; may be nil.
	Report io.Writer
	// LogLevel is that of rehome's processes.
	LogLevel string
}

// PlayMediaResult is what came of it, in the form that --output json prints.
type PlayMediaResult struct {
	Scenario string `json:"scenario"`
	OK       bool   `json:"ok"`
	// Problems says what went wrong.
	Problems []string `json:"problems,omitempty"`
	// Sessions were completed, of SessionsWanted.
	Sessions       int `json:"sessions"`
	SessionsWanted int `json:"sessionsWanted"`
	// AnnouncedFlows are the flows of media on which clients have sent; MisroutedFlows those of them of which a packet came to another
	// server than its session's; FlowsPerServer those of each server.
	AnnouncedFlows int   `json:"announcedFlows"`
	MisroutedFlows int   `json:"misroutedFlows"`
	FlowsPerServer []int `json:"flowsPerServer"`
	// DatagramFlows are those of DNS, which only its datagrams tell of; of them, too, MisroutedFlows counts.
	DatagramFlows int `json:"datagramFlows"`
	// MediaPackets are the datagrams that clients and servers have sent, MediaPacketsLost those that did not arrive.
	MediaPackets     int `json:"mediaPackets"`
	MediaPacketsLost int `json:"mediaPacketsLost"`
	// GatewayReports are what the gateway has told the dispatcher, AnswersLate the servers' packets that it released before the dispatcher had confirmed them.
	GatewayReports int `json:"gatewayReports"`
	AnswersLate    int `json:"answersLate"`
}

// PlayMedia plays the scene: clients of RTSP, SIP, FTP and DNS that nobody changed have sessions with several servers behind one virtual address, where each
// session's media must come to the server of its signalling. The error says that the scene could not be played; what went wrong for the clients is
// in the result.
func PlayMedia(ctx context.Context, cfg PlayMediaConfig) (_ *PlayMediaResult, err error) {
	if cfg.Work == (MediaWork{}) {
		cfg.Work = MediaWork{Calls: 12, Plays: 6, Records: 6, Interleaved: 3, Transfers: 2, Queries: 12}
	}
	if cfg.Hold == 0 {
		cfg.Hold = time.Second
	}
	if cfg.Report == nil {
		cfg.Report = io.Discard
	}
	say := func(format string, args ...any) { fmt.Fprintf(cfg.Report, "media: "+format+"\n", args...) }
	m, err := StartMedia(ctx, MediaFarmConfig{Command: cfg.Command, Lab: cfg.Lab, Agents: !cfg.Direct, Hold: cfg.Hold, LogLevel: cfg.LogLevel})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	servers := m.Servers()
	if cfg.Direct {
		servers = servers[:1]
	}
	for _, server := range servers {
		if err := m.ServeAll(ctx, server); err != nil {
			return nil, err
		}
	}
	say("%d servers of RTSP, SIP, FTP and DNS stand behind %v", len(servers), m.VIP())
	if cfg.Direct {
		_, err = m.ListenAsDispatcher(ctx)
		err = errors.Join(err, m.Point(servers[0]))
	} else {
		err = m.StartDispatcher(ctx)
	}
	if err != nil {
		return nil, err
	}
	gw, err := m.StartGateway(ctx)
	if err != nil {
		return nil, err
	}
	capture, err := m.Capture()
	if err != nil {
		return nil, err
	}
	say("%d sessions begin", cfg.Work.Sessions())
	r := &PlayMediaResult{Scenario: "media", SessionsWanted: cfg.Work.Sessions()}
	var failed error
	r.Sessions, failed = m.Work(ctx, cfg.Work, nil)
	traffic, err := capture.Close()
	if err != nil {
		return nil, err
	}
	if err := r.read(ctx, gw, traffic); err != nil {
		return nil, err
	}
	r.judge(cfg, failed, traffic.Missed)
	say("%d sessions completed, %d flows of media, %d of %d packets lost", r.Sessions, r.AnnouncedFlows, r.MediaPacketsLost, r.MediaPackets)
	return r, ctx.Err()
}

// read fills in what was counted.
func (r *PlayMediaResult) read(ctx context.Context, gw *MediaGateway, traffic MediaTraffic) error {
	tally := traffic.Tally()
	r.AnnouncedFlows, r.MisroutedFlows, r.FlowsPerServer = tally.Announced, tally.Misrouted, tally.PerServer
	r.DatagramFlows = tally.Queried
	r.MediaPackets, r.MediaPacketsLost = tally.Packets, tally.Lost
	for name, to := range map[string]*int{"reports": &r.GatewayReports, "late_packets": &r.AnswersLate} {
		n, err := gw.Counter(ctx, "rehome_gateway_"+name+"_total")
		if err != nil {
			return err
		}
		*to = int(n)
	}
	return nil
}

// judge decides whether all is well.
func (r *PlayMediaResult) judge(cfg PlayMediaConfig, failed error, missed int) {
	bad := func(format string, args ...any) { r.Problems = append(r.Problems, fmt.Sprintf(format, args...)) }
	if failed != nil {
		bad("%v", failed)
	}
	if r.Sessions != r.SessionsWanted {
		bad("%d sessions of %d were completed", r.Sessions, r.SessionsWanted)
	}
	if want := cfg.Work.Flows(); r.AnnouncedFlows < want {
		bad("%d flows of media were seen, want %d", r.AnnouncedFlows, want)
	}
	if r.DatagramFlows != cfg.Work.Queries {
		bad("%d flows of DNS were seen, want %d", r.DatagramFlows, cfg.Work.Queries)
	}
	if r.MisroutedFlows > 0 {
		bad("%d flows came to another server than their session's", r.MisroutedFlows)
	}
	if r.MediaPacketsLost > 0 {
		bad("%d packets of media were lost", r.MediaPacketsLost)
	}
	if missed > 0 {
		bad("%d packets were not counted: the machine is too busy", missed)
	}
	for i, n := range r.FlowsPerServer {
		if n == 0 && !cfg.Direct {
			bad("server %d had no session", i+1)
		}
	}
	r.OK = len(r.Problems) == 0
}
