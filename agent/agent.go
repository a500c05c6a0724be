// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/rehome-net/rehome/agent/api"
	"github.com/rehome-net/rehome/handoff/calm"
	"github.com/rehome-net/rehome/handoff/peer"
	"github.com/rehome-net/rehome/handoff/sockops"
)

// socketMode lets root and the socket's group connect.
const socketMode = 0o660

// callsTime is how long the end of an agent waits for operators to read what it has to say.
const callsTime = time.Second

// Agent is the daemon of one host.
type Agent struct {
	cfg  Config // that it was started with
	log  *slog.Logger
	file string
	// reportCommand runs the process that reports; empty: this one does.
	reportCommand []string
	// calms is set when the process is the agent's alone.
	calms bool

	reloading sync.Mutex
	engine    *engine
	// up is closed when engine runs, over when Run returns.
	up, over chan struct{}
}

// New returns an agent with a validated configuration.
func New(cfg Config, log *slog.Logger) *Agent {
	return &Agent{cfg: cfg, log: log, up: make(chan struct{}), over: make(chan struct{})}
}

// Calm says that this process is the agent's alone: Go's runtime is set up for it, so that the clients of moving connections wait less
// (package calm). Call it before Run.
func (a *Agent) Calm() { a.calms = true }

// listeners are the agent's doors.
type listeners struct {
	applications *net.UnixListener
	peers        net.Listener
	control      net.Listener
	metrics      net.Listener
}

// Run opens the gate and the listeners, serves until ctx ends, and then finishes the moves in flight: what has not
// been transferred goes on here, what has is seen to its end. With a pinned gate, flows keep their paths while no agent
// runs. Call it once.
func (a *Agent) Run(ctx context.Context) error {
	defer close(a.over)
	id, err := peer.LoadIdentity(a.cfg.TLS)
	if err != nil {
		return err
	}
	// The doors first: they tell of an agent that runs already, whose gate must not be touched.
	ls, err := a.listen(ctx)
	if err != nil {
		return err
	}
	defer ls.close()
	g, err := a.openGate()
	if err != nil {
		return err
	}
	defer func() {
		if err := g.Close(); err != nil {
			a.log.Warn("closing the gate", "error", err)
		}
	}()
	seeder := a.openSeeder()
	if seeder != nil {
		defer seeder.Close() //nolint:errcheck // the kernel drops it with the process
	}
	e := newEngine(a.cfg, g, seeder, newMetrics(), id, a.log)
	if e.reporter, err = a.openReporter(); err != nil {
		return fmt.Errorf("report: %w", err)
	}
	e.metrics.watchReporter(e.reporter)
	e.setServices()
	e.withdrawPinned()
	if a.calms {
		if err := calm.Monitor(); err != nil {
			a.log.Info("clients wait a little longer for connections that move", "error", err)
		}
		e.processors = calm.NewProcessors()
		defer e.processors.Close()
	}
	go a.sayUnmodified()
	ends, closeEnds := a.openEnds(e)
	defer closeEnds()
	return a.serve(ctx, e, ends, ls)
}

// serve runs everything until the engine has ended.
func (a *Agent) serve(ctx context.Context, e *engine, ends *ends, ls *listeners) error {
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	server := grpc.NewServer(append(ls.credentials(e), grpc.StaticStreamWindowSize(api.Window), grpc.StaticConnWindowSize(api.Window))...)
	api.RegisterAgentServer(server, &control{e: e, reload: a.ReloadFile})
	group, serving := errgroup.WithContext(serving)
	group.Go(func() error {
		defer stop()
		engineCtx, cancel := context.WithCancel(ctx)
		defer cancel()
		defer context.AfterFunc(serving, cancel)() // something beneath has failed
		_ = e.run(engineCtx)
		return nil
	})
	group.Go(func() error { return ignoreCanceled(e.gate.Run(serving)) })
	group.Go(func() error { return ignoreCanceled(e.watchPeers(serving)) })
	group.Go(func() error { return e.serveApplications(serving, ls.applications) })
	group.Go(func() error { return e.servePeers(serving, ls.peers) })
	group.Go(func() error { return e.runAcceptor(serving) })
	group.Go(func() error {
		if err := server.Serve(ls.control); !errors.Is(err, grpc.ErrServerStopped) {
			return err
		}
		return nil
	})
	if ends != nil {
		group.Go(func() error { return ends.run(serving) })
	}
	if e.reporter != nil {
		group.Go(func() error { return e.reporter.Run(serving) })
	}
	if ls.metrics != nil {
		group.Go(func() error { return serveMetrics(serving, e.metrics, ls.metrics) })
	}
	group.Go(func() error {
		<-serving.Done()
		ls.closeToHosts()
		e.closeLinks()
		return nil
	})
	group.Go(func() error {
		<-serving.Done()
		<-e.stopped
		endCalls(server)
		ls.close()
		return nil
	})
	a.log.Info("agent is up", "host", a.cfg.Host, "version", peer.Version(), "entry", a.cfg.IsEntry())
	a.notify(daemon.SdNotifyReady)
	a.engine = e
	close(a.up)
	go func() {
		<-ctx.Done()
		a.notify(daemon.SdNotifyStopping)
	}()
	return group.Wait()
}

func (a *Agent) notify(state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		a.log.Warn("cannot notify the service manager", "error", err)
	}
}

// openSeeder returns nil where the kernel or the rights are missing: moves work without it.
func (a *Agent) openSeeder() *sockops.Seeder {
	if !isOn(a.cfg.Migration.SeedWindow) || a.cfg.Gate.Mode == GateNFT { // no BPF at all
		return nil
	}
	s, err := sockops.Open("")
	if err != nil {
		a.log.Warn("moved connections start with a small congestion window", "error", err)
		return nil
	}
	return s
}

// listen opens the agent's doors.
func (a *Agent) listen(ctx context.Context) (_ *listeners, err error) {
	ls := &listeners{}
	defer func() {
		if err != nil {
			ls.close()
		}
	}()
	app, err := listenUnix(a.cfg.Applications)
	if err != nil {
		return nil, fmt.Errorf("applications: %w", err)
	}
	ls.applications = app
	lc := net.ListenConfig{}
	lc.SetMultipathTCP(false)
	if ls.peers, err = lc.Listen(ctx, "tcp", a.cfg.Listen); err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	if a.cfg.controlIsPath() {
		ctl, err := listenUnix(a.cfg.Control)
		if err != nil {
			return nil, fmt.Errorf("control: %w", err)
		}
		ls.control = ctl
	} else if ls.control, err = lc.Listen(ctx, "tcp", a.cfg.Control); err != nil {
		return nil, fmt.Errorf("control: %w", err)
	}
	if a.cfg.Metrics != "" {
		if ls.metrics, err = lc.Listen(ctx, "tcp", a.cfg.Metrics); err != nil {
			return nil, fmt.Errorf("metrics: %w", err)
		}
	}
	return ls, nil
}

// listenUnix makes a UNIX socket, in the place of one that a dead process left behind.
func listenUnix(path string) (*net.UnixListener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	if conn, err := net.DialTimeout("unix", path, time.Second); err == nil {
		_ = conn.Close()
		return nil, fmt.Errorf("%s is in use by a running agent: stop it first", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, socketMode); err != nil {
		_ = ln.Close()
		return nil, err
	}
	return ln, nil
}

// credentials are for operators over TCP; those on this host's socket are trusted by the socket's mode.
func (ls *listeners) credentials(e *engine) []grpc.ServerOption {
	if strings.HasPrefix(ls.control.Addr().Network(), "unix") {
		return nil
	}
	return []grpc.ServerOption{grpc.Creds(credentials.NewTLS(e.self.Identity.Server()))}
}

// closeToHosts lets nobody in any more but operators: their calls end by themselves.
func (ls *listeners) closeToHosts() {
	_, _ = ls.applications.Close(), ls.peers.Close()
}

// endCalls ends the operators' server. Calls that report something have time to finish: the summary of a drain is what its operator
// waits for.
func endCalls(server *grpc.Server) {
	timer := time.AfterFunc(callsTime, server.Stop)
	defer timer.Stop()
	server.GracefulStop()
}

func (ls *listeners) close() {
	if ls.applications != nil {
		_ = ls.applications.Close()
	}
	for _, l := range []net.Listener{ls.peers, ls.control, ls.metrics} {
		if l != nil {
			_ = l.Close()
		}
	}
}

func serveMetrics(ctx context.Context, m *metrics, ln net.Listener) error {
	mux := http.NewServeMux()
	mux.Handle("/metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{}))
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(ln); !errors.Is(err, http.ErrServerClosed) && ctx.Err() == nil {
		return err
	}
	return nil
}

func ignoreCanceled(err error) error {
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// closeLinks ends every connection after the engine has. All have the same second for what is queued: the next agent waits for it.
func (e *engine) closeLinks() {
	<-e.stopped
	defer e.untaken.end(time.Second)
	if e.inject.made != nil {
		if err := e.inject.made.Close(); err != nil {
			e.log.Warn("closing the injector", "error", err)
		}
	}
	var all sync.WaitGroup
	for a := range e.apps {
		all.Go(func() { farewell(a.link) })
	}
	for in := range e.incoming {
		all.Go(func() { farewell(in.link) })
	}
	for _, p := range e.peers {
		if p.link != nil {
			all.Go(func() { farewell(p.link) })
		}
	}
	all.Wait()
}
