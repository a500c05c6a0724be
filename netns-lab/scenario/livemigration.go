// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/rehome-net/rehome/agent/api"
	netnslab "github.com/rehome-net/rehome/netns-lab"
	"github.com/rehome-net/rehome/tcprepair"
)

// captureBuffer is what the capture may lag behind, in bytes: bulk transfers at the speed of memory, on a machine with other work to do.
const captureBuffer = 256 << 20

// LiveMigrationConfig describes the scene "live-migration". Its zero value is the demo's, but for Command.
type LiveMigrationConfig struct {
	// Command is how to run rehome, as in ClusterConfig.
	Command []string
	// Lab is the lab's name; "live-migration" when empty.
	Lab string
	// Migrations is how often every connection moves; 20 when zero.
	Migrations int
	// Size is that of the file, in bytes; 1 GiB when zero.
	Size int64
	// Interval is the pause between two moves of a connection; 10 ms when zero.
	Interval time.Duration
	// Report gets a line for each move, and what else happens; may be nil.
	Report io.Writer
	// LogLevel is the agents'.
	LogLevel string
}

func (c LiveMigrationConfig) withDefaults() LiveMigrationConfig {
	if c.Lab == "" {
		c.Lab = "live-migration"
	}
	if c.Migrations == 0 {
		c.Migrations = 20
	}
	if c.Size == 0 {
		c.Size = 1 << 30
	}
	if c.Interval == 0 {
		c.Interval = 10 * time.Millisecond
	}
	if c.Report == nil {
		c.Report = io.Discard
	}
	return c
}

// LiveMigrationResult is what came of it, in the form that --output json prints.
type LiveMigrationResult struct {
	Scenario string `json:"scenario"`
	OK       bool   `json:"ok"`
	// Problems says why OK is false.
	Problems []string `json:"problems,omitempty"`
	// Migrations is how often every connection was moved.
	Migrations int `json:"migrations"`
	// Moves counts the moves of all connections.
	Moves       int   `json:"moves"`
	Bytes       int64 `json:"bytes"`
	SHA256Equal bool  `json:"sha256Equal"`
	// Client is the downloading client, Upload the uploading one, Echo the interactive one.
	Client ClientResult `json:"client"`
	Upload ClientResult `json:"upload"`
	Echo   ClientResult `json:"echo"`
	// FreezeMicros is the time in which a connection was frozen: from holding its first packet until it was the target's.
	FreezeMicros Quantiles `json:"freezeMicros"`
	// SnapshotMicros is the part of it in which the socket was frozen and read; TotalMicros is a whole move.
	SnapshotMicros Quantiles `json:"snapshotMicros"`
	TotalMicros    Quantiles `json:"totalMicros"`
	HeldPackets    int       `json:"heldPackets"`
	// GapMicros is the longest gap that a client saw around each move: without data (download), without an acknowledgement
	// (upload), without the echo of its line.
	GapMicros Quantiles `json:"gapMicros"`
}

// ClientResult is what one client saw.
type ClientResult struct {
	// Connections counts the SYNs it sent, Resets the RSTs it received.
	Connections int `json:"connections"`
	Resets      int `json:"resets"`
	// RetransmissionTimeouts and Retransmitted are the kernel's counts at the client (TCP_INFO).
	RetransmissionTimeouts int `json:"retransmissionTimeouts"`
	Retransmitted          int `json:"retransmitted"`
	// RetransmittedToClient counts packets that the servers sent again.
	RetransmittedToClient int `json:"retransmittedToClient"`
	// LongestGapMillis is the longest time in which the client waited for data, for the answer to its line, or for
	// room to send more.
	LongestGapMillis float64 `json:"longestGapMillis"`
	MegabitsPerS     float64 `json:"megabitsPerSecond,omitempty"`
	Rounds           int     `json:"rounds,omitempty"`
}

// Quantiles are those of the moves.
type Quantiles struct {
	Median int64 `json:"median"`
	P99    int64 `json:"p99"`
	Max    int64 `json:"max"`
}

func quantiles(v []int64) Quantiles {
	if len(v) == 0 {
		return Quantiles{}
	}
	v = slices.Sorted(slices.Values(v))
	return Quantiles{Median: v[len(v)/2], P99: v[len(v)*99/100], Max: v[len(v)-1]}
}

// LiveMigration plays the scene: an ordinary client downloads a file, another uploads one, a third types into an echo
// session, while each of their connections moves from server to server. The error says that the scene could not be
// played; what went wrong for the clients is in the result.
func LiveMigration(ctx context.Context, cfg LiveMigrationConfig) (_ *LiveMigrationResult, err error) {
	cfg = cfg.withDefaults()
	if err := need("curl"); err != nil {
		return nil, err
	}
	root, err := os.MkdirTemp("", "rh-live-migration-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(root) //nolint:errcheck // a temporary directory
	fmt.Fprintf(cfg.Report, "making a pseudo-random file of %d MiB\n", cfg.Size>>20)
	s := &liveMigration{cfg: cfg, root: root}
	if s.sum, err = makeFile(filepath.Join(root, fileName), cfg.Size); err != nil {
		return nil, err
	}
	topo := netnslab.Standard(3)
	topo.Name = cfg.Lab
	cluster, err := StartCluster(ctx, ClusterConfig{Topology: topo, Command: cfg.Command, Root: root, LogLevel: cfg.LogLevel})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, cluster.Close()) }()
	s.cluster, s.vip = cluster, topo.VIP4()
	return s.play(ctx)
}

const fileName = "noise.bin"

func makeFile(path string, size int64) (sum [32]byte, err error) {
	f, err := os.Create(path)
	if err != nil {
		return sum, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return netnslab.Noise{Seed: 1, Size: size}.WriteSum(f)
}

type liveMigration struct {
	cfg     LiveMigrationConfig
	root    string
	sum     [32]byte
	cluster *Cluster
	vip     netip.Addr
}

// play runs the clients and the moves side by side.
func (s *liveMigration) play(ctx context.Context) (*LiveMigrationResult, error) {
	client, err := s.cluster.Lab.Host("client")
	if err != nil {
		return nil, err
	}
	capture, err := client.Capture(netnslab.CaptureConfig{Buffer: captureBuffer})
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(s.cfg.Report, "client: curl downloads, curl uploads, an echo session is typed into; servers: %v\n", s.cluster.Servers())
	group, gctx := errgroup.WithContext(ctx)
	echoCtx, stopEcho := context.WithCancel(gctx)
	defer stopEcho()
	down := &curl{watched: newWatched(), host: client, url: fmt.Sprintf("http://%v/%s", netip.AddrPortFrom(s.vip, FilesPort), fileName)}
	up := &curl{
		watched: newWatched(), host: client, url: fmt.Sprintf("http://%v/upload", netip.AddrPortFrom(s.vip, FilesPort)),
		upload: filepath.Join(s.root, fileName),
	}
	echo := &typist{watched: newWatched(), host: client, addr: netip.AddrPortFrom(s.vip, EchoPort)}
	group.Go(func() error { return down.run(gctx) })
	group.Go(func() error { return up.run(gctx) })
	group.Go(func() error { return echo.run(echoCtx) })
	var moves []move
	group.Go(func() error {
		defer stopEcho()
		var err error
		moves, err = s.move(gctx, down, up, echo)
		return err
	})
	playErr := group.Wait()
	trace, err := capture.Close()
	if err := errors.Join(playErr, err); err != nil {
		return nil, s.explain(err)
	}
	return s.result(trace, moves, down, up, echo), nil
}

// explain adds what the agents said.
func (s *liveMigration) explain(err error) error {
	for _, h := range append(s.cluster.Servers(), "entry") {
		if log := s.cluster.Logs(h); log != "" {
			fmt.Fprintf(s.cfg.Report, "--- %s\n%s", h, log)
		}
	}
	return err
}

// move is one connection's move.
type move struct {
	round      int
	client     string
	from       string
	moved      *api.Moved
	flow       tcprepair.Flow
	begin, end time.Time
}

// place is a connection and where it is.
type place struct {
	client string
	flow   tcprepair.Flow
	host   string
}

// connection is what a client tells about itself.
type connection interface {
	name() string
	flow(ctx context.Context) (tcprepair.Flow, error)
}

// move moves every client's connection around the servers, each by itself.
func (s *liveMigration) move(ctx context.Context, clients ...connection) ([]move, error) {
	var places []*place
	for _, c := range clients {
		f, err := c.flow(ctx)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", c.name(), err)
		}
		host, err := s.cluster.Find(ctx, f)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", c.name(), err)
		}
		places = append(places, &place{client: c.name(), flow: f, host: host})
	}
	m := &mover{scene: s}
	group, gctx := errgroup.WithContext(ctx)
	for _, p := range places {
		group.Go(func() error { return m.around(gctx, p) })
	}
	err := group.Wait()
	return m.moves, err
}

// mover collects the moves of all connections.
type mover struct {
	scene *liveMigration
	mu    sync.Mutex
	moves []move
}

// around moves one connection around the servers, each time as soon as it has rested a while.
func (m *mover) around(ctx context.Context, p *place) error {
	for round := 1; round <= m.scene.cfg.Migrations; round++ {
		to := m.scene.next(p.host)
		begin := time.Now()
		moved, err := m.scene.cluster.Move(ctx, p.host, p.flow, to)
		if err != nil {
			return fmt.Errorf("move %d: %s from %s to %s: %w (if the transfer is over: use a larger file)", round, p.client, p.host, to, err)
		}
		m.add(move{round: round, client: p.client, from: p.host, moved: moved, flow: p.flow, begin: begin, end: time.Now()})
		p.host = to
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(m.scene.cfg.Interval):
		}
	}
	return nil
}

func (m *mover) add(v move) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.moves = append(m.moves, v)
}

// report prints a line for each move, with the longest gap that its client saw around it, and returns those gaps.
func (s *liveMigration) report(trace netnslab.Trace, moves []move) []int64 {
	waits := make(map[string][]wait)
	gaps := make([]int64, 0, len(moves))
	for _, v := range moves {
		if waits[v.client] == nil {
			waits[v.client] = waitsOf(v.client, trace.Flow(v.flow), v.flow)
		}
		gap := longestWait(waits[v.client], v.begin, v.end)
		gaps = append(gaps, gap.Microseconds())
		d := v.moved
		fmt.Fprintf(s.cfg.Report, "%-8s move %2d  %s -> %s  freeze %6d us (socket %4d us)  total %6d us  held %4d packets  gap %6.2f ms\n",
			v.client, v.round, v.from, d.GetTo(), d.GetFreezeMicros(), d.GetSnapshotMicros(), d.GetTotalMicros(), d.GetHeldPackets(), millis(gap))
	}
	return gaps
}

// next returns the server after host, around the ring.
func (s *liveMigration) next(host string) string {
	servers := s.cluster.Servers()
	return servers[(slices.Index(servers, host)+1)%len(servers)]
}

func (s *liveMigration) result(trace netnslab.Trace, moves []move, down, up *curl, echo *typist) *LiveMigrationResult {
	r := &LiveMigrationResult{
		Scenario: "live-migration", Migrations: s.cfg.Migrations, Moves: len(moves), Bytes: s.cfg.Size,
		Client: down.result(trace), Upload: up.result(trace), Echo: echo.result(trace),
	}
	r.GapMicros = quantiles(s.report(trace, moves))
	var freeze, snapshot, total []int64
	for _, m := range moves {
		freeze = append(freeze, m.moved.GetFreezeMicros())
		snapshot = append(snapshot, m.moved.GetSnapshotMicros())
		total = append(total, m.moved.GetTotalMicros())
		r.HeldPackets += int(m.moved.GetHeldPackets())
	}
	r.FreezeMicros, r.SnapshotMicros, r.TotalMicros = quantiles(freeze), quantiles(snapshot), quantiles(total)
	want := fmt.Sprintf("%x", s.sum)
	r.SHA256Equal = down.sum == want && up.sum == want
	r.judge(down, up, trace)
	return r
}

// judge sets OK.
func (r *LiveMigrationResult) judge(down, up *curl, trace netnslab.Trace) {
	bad := func(format string, args ...any) { r.Problems = append(r.Problems, fmt.Sprintf(format, args...)) }
	if !r.SHA256Equal {
		bad("the SHA-256 sums differ: downloaded %s, uploaded %s", down.sum, up.sum)
	}
	if trace.Missed > 0 {
		bad("the capture at the client missed %d packets: its counts prove nothing", trace.Missed)
	}
	for _, c := range []struct {
		name string
		r    ClientResult
	}{{"download", r.Client}, {"upload", r.Upload}, {"echo", r.Echo}} {
		if c.r.Connections != 1 {
			bad("%s: the client opened %d connections", c.name, c.r.Connections)
		}
		if c.r.Resets != 0 {
			bad("%s: the client received %d resets", c.name, c.r.Resets)
		}
		if c.r.RetransmissionTimeouts != 0 {
			bad("%s: the client had %d retransmission timeouts", c.name, c.r.RetransmissionTimeouts)
		}
	}
	if want := 3 * r.Migrations; r.Moves != want {
		bad("%d moves instead of %d", r.Moves, want)
	}
	r.OK = len(r.Problems) == 0
}
