// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/handoff/neighbour"
)

var (
	// ErrNoFile means that the agent has not been told where its configuration is.
	ErrNoFile = errors.New("the agent was started without a configuration file")
	// ErrStopped means that the agent is ending, and takes no orders any more.
	ErrStopped = errors.New("the agent is stopping")
)

// ConfigError means that the configuration file cannot be used.
type ConfigError struct {
	// Err names the file, and the line or the key.
	Err error
}

// Error implements error.
func (e *ConfigError) Error() string { return e.Err.Error() }

// Unwrap returns Err.
func (e *ConfigError) Unwrap() error { return e.Err }

// SetFile says where ReloadFile, and operators' requests to reload, find the configuration. Call it before Run.
func (a *Agent) SetFile(path string) { a.file = path }

// ReloadFile reads the configuration file again and carries out what it says. An error, which is logged too, means that nothing has
// changed; it is a *ConfigError or one of Reload's. It waits for Run.
func (a *Agent) ReloadFile() error {
	e, unlock, err := a.lockReload()
	if err != nil {
		return err
	}
	defer unlock()
	begin := time.Now()
	a.notifyReloading()
	defer a.notify(daemon.SdNotifyReady)
	cfg, err := a.readFile()
	if err == nil {
		err = a.reload(e, cfg)
	}
	if err != nil {
		a.log.Error("the configuration stays as it is", "error", err)
		return err
	}
	a.log.Info("the configuration has been reloaded", "services", len(cfg.Services), "peers", len(cfg.Peers), "took", time.Since(begin))
	return nil
}

func (a *Agent) readFile() (Config, error) {
	if a.file == "" {
		return Config{}, ErrNoFile
	}
	cfg, err := LoadConfig(a.file)
	if err != nil {
		return Config{}, &ConfigError{err}
	}
	return cfg, nil
}

// Reload puts a validated configuration into effect, as a whole. An error means that nothing has changed: a *RestartError, ErrStopped,
// or what is wrong with the numbers of peers or cannot be written into the kernel's tables. Moves in flight come to their end as
// they began; flows keep their owners. It waits for Run.
func (a *Agent) Reload(cfg Config) error {
	e, unlock, err := a.lockReload()
	if err != nil {
		return err
	}
	defer unlock()
	return a.reload(e, cfg)
}

// lockReload waits until the agent runs and no other reload does.
func (a *Agent) lockReload() (_ *engine, unlock func(), _ error) {
	select {
	case <-a.up:
	case <-a.over:
		return nil, nil, ErrStopped
	}
	a.reloading.Lock()
	stopping := true
	a.engine.ask(context.Background(), func(e *engine) { stopping = e.stopping })
	if stopping {
		a.reloading.Unlock()
		return nil, nil, ErrStopped
	}
	return a.engine, a.reloading.Unlock, nil
}

func (a *Agent) reload(e *engine, cfg Config) error {
	err := ErrStopped
	var added []neighbour.Host
	e.ask(context.Background(), func(e *engine) { added, err = e.review(&cfg) })
	if err != nil {
		return err
	}
	e.meet(added)
	err = ErrStopped
	e.ask(context.Background(), func(e *engine) { err = e.reload(cfg) })
	return err
}

// notifyReloading tells the service manager that a reload begins; READY is its end. Type=notify-reload wants the time, too.
func (a *Agent) notifyReloading() {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		a.log.Warn("cannot read the clock for the service manager", "error", err)
		return
	}
	a.notify(fmt.Sprintf("%s\nMONOTONIC_USEC=%d", daemon.SdNotifyReloading, now.Nano()/1000))
}
