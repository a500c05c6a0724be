// SPDX-License-Identifier: Apache-2.0

package report

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/rehome-net/rehome/handoff/realtime"
)

const (
	// restartAfter is the pause before a process that has ended is started again.
	restartAfter = 100 * time.Millisecond
	// statsEvery is how often a process says what it has counted.
	statsEvery = time.Second
	// endTime is how long a process has to say that this host is gone.
	endTime = 2 * time.Second
)

// Process is a reporter in a process of its own, all of whose threads have real-time priority: in one that does other things, too, Go's
// scheduler lets heartbeats be late (package handoff/realtime).
//
// The two processes speak JSON over pipes: first the configuration, with the key, then words, each of which replaces the last; and
// back, statistics. The child ends when its input does, so that it never outlives its parent.
type Process struct {
	Teller

	cfg     Config
	command []string
	changed chan struct{} // holds a token when there is a new word
	stats   atomic.Pointer[Stats]
}

// NewProcess returns a reporter that Run starts as the given command, whose main must call Serve with its standard input and output.
func NewProcess(config Config, command []string) (*Process, error) {
	config = config.withDefaults()
	if err := config.validate(); err != nil {
		return nil, err
	}
	if len(command) == 0 {
		return nil, errors.New("command: missing")
	}
	p := &Process{cfg: config, command: command, changed: make(chan struct{}, 1)}
	p.tell = func(word) {
		select {
		case p.changed <- struct{}{}:
		default:
		}
	}
	p.stats.Store(&Stats{})
	return p, nil
}

// Stats returns what the process has counted, not older than about a second.
func (p *Process) Stats() Stats { return *p.stats.Load() }

// Run keeps the process running until ctx ends, and then has it say that this host is gone. The error is always nil: what goes wrong is
// logged, and tried again.
func (p *Process) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		if err := p.runOnce(ctx); ctx.Err() == nil {
			p.cfg.Logger.Error("the process that sends heartbeats has ended", "error", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(restartAfter):
		}
	}
	return nil
}

func (p *Process) runOnce(ctx context.Context) error {
	cmd := exec.Command(p.command[0], p.command[1:]...) //nolint:gosec // the caller's
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	group, alive := errgroup.WithContext(ctx)
	group.Go(func() error {
		defer in.Close() //nolint:errcheck // it ends with that
		return p.write(alive, in)
	})
	group.Go(func() error { return p.read(out) })
	// One that does not end by itself when its input does.
	stuck := make(chan struct{})
	defer context.AfterFunc(alive, func() {
		select {
		case <-stuck:
		case <-time.After(endTime):
			_ = cmd.Process.Kill()
		}
	})()
	err = group.Wait()
	close(stuck)
	return errors.Join(err, cmd.Wait())
}

// write sends configuration and words until the process is not there any more.
func (p *Process) write(ctx context.Context, in io.Writer) error {
	e := json.NewEncoder(in)
	if err := e.Encode(p.cfg); err != nil {
		return err
	}
	for {
		p.mu.Lock()
		w := p.word
		p.mu.Unlock()
		if err := e.Encode(w); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-p.changed:
		}
	}
}

// errSilent is a process whose output has ended.
var errSilent = errors.New("it says nothing any more")

func (p *Process) read(out io.Reader) error {
	d := json.NewDecoder(out)
	for {
		var s Stats
		if err := d.Decode(&s); errors.Is(err, io.EOF) {
			return errSilent
		} else if err != nil {
			return err
		}
		p.stats.Store(&s)
	}
}

// Serve is the program of the process that a Process starts. It returns when in has ended, after it has said that this host is gone.
func Serve(in io.Reader, out io.Writer) error {
	// Who stops the parent may signal all its children; the parent decides.
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	_, _ = realtime.Process() // Run's own thread says what it has got
	return serve(in, out)
}

// serve is Serve without what concerns the whole process.
func serve(in io.Reader, out io.Writer) error {
	d := json.NewDecoder(in)
	var config Config
	if err := d.Decode(&config); err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	r, err := New(config)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return r.Run(ctx) })
	group.Go(func() error {
		tick := time.NewTicker(statsEvery)
		defer tick.Stop()
		for e := json.NewEncoder(out); ; {
			if err := e.Encode(r.Stats()); err != nil {
				return fmt.Errorf("statistics: %w", err)
			}
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
			}
		}
	})
	// The reader is not waited for when something else fails: the process ends.
	ended := make(chan error, 1)
	go func() { ended <- listen(d, r) }()
	select {
	case err = <-ended:
	case <-ctx.Done():
	}
	cancel()
	return errors.Join(err, group.Wait())
}

// listen takes words until there are no more.
func listen(d *json.Decoder, r *Reporter) error {
	for {
		var w word
		if err := d.Decode(&w); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("word: %w", err)
		}
		r.setWord(w)
	}
}
