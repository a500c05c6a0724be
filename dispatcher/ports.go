// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"
)

// controlMode lets root and the socket's group connect.
const controlMode = 0o660

// ports are the listeners that are not for clients. metrics may be nil.
type ports struct {
	agents, control, metrics net.Listener
}

// openPorts opens them all.
func (d *Dispatcher) openPorts(ctx context.Context) (_ *ports, err error) {
	p := &ports{}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	lc := net.ListenConfig{}
	lc.SetMultipathTCP(false)
	if d.cfg.ControlIsPath() {
		p.control, err = listenControl(d.cfg.Control)
	} else {
		p.control, err = lc.Listen(ctx, "tcp", d.cfg.Control)
	}
	if err != nil {
		return nil, fmt.Errorf("control: %w", err)
	}
	if p.agents, err = lc.Listen(ctx, "tcp", d.cfg.Listen); err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	if d.cfg.Metrics != "" {
		if p.metrics, err = lc.Listen(ctx, "tcp", d.cfg.Metrics); err != nil {
			return nil, fmt.Errorf("metrics: %w", err)
		}
	}
	return p, nil
}

func (p *ports) close() {
	for _, ln := range []net.Listener{p.agents, p.control, p.metrics} {
		if ln != nil {
			_ = ln.Close() // whoever served it may have closed it
		}
	}
}

// listenControl makes the operators' UNIX socket, in the place of one that a dead dispatcher left behind.
func listenControl(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	if conn, err := net.DialTimeout("unix", path, time.Second); err == nil {
		_ = conn.Close()
		return nil, fmt.Errorf("%s is in use by a running dispatcher: stop it first", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	ln, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, controlMode); err != nil {
		_ = ln.Close()
		return nil, err
	}
	return ln, nil
}
