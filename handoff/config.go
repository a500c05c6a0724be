// SPDX-License-Identifier: Apache-2.0

package handoff

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"
)

const (
	// DefaultAgent is the path of the agent's UNIX socket for applications.
	DefaultAgent = "/run/rehome/agent.sock"
	// AgentEnvironment names the environment variable that replaces DefaultAgent.
	AgentEnvironment = "REHOME_AGENT_SOCKET"
	// DefaultRecoverTimeout is how long a connection waits for an agent that died during its move.
	DefaultRecoverTimeout = 30 * time.Second
	// MaxState bounds a State, and what is sent ahead of it, in bytes.
	MaxState = 64 << 20

	// DefaultUnsent is the value of Config.Unsent when that is zero.
	DefaultUnsent = 128 << 10

	maxService = 255
)

// Exporter returns the State of a paused connection. It must not read from or write to c, which would wait for the
// very pause it runs in. ctx ends when the agent no longer waits, and the connection goes on then. See ErrNotNow, ErrNotMovable.
type Exporter func(ctx context.Context, c *Conn) ([]byte, error)

// Importer checks the State of a connection that is about to arrive; an error refuses it, and it stays where it is. c
// is not alive yet: its addresses, deadlines and counts can be used, reads and writes fail with ErrNotActive.
type Importer func(ctx context.Context, c *Conn, s State) error

// Preparer returns what can be told of a connection's State while it is being served, so that it need not be carried
// while the connection stands still. The importer finds it in State.Ahead.
type Preparer func(ctx context.Context, c *Conn) ([]byte, error)

// State is what a connection's exporter told its importer.
type State struct {
	// Data is what the Exporter returned.
	Data []byte
	// Ahead is what the Preparer returned, nil without one. Data is newer.
	Ahead []byte
}

// Config says what a Listener serves and how its connections move.
type Config struct {
	// Service is the name under which hosts offer the same service, such as "files"; 1 to 255 bytes. A connection
	// moves only to a host where a listener of this Service runs.
	Service string
	// Agent is the path of the agent's socket. Empty means $REHOME_AGENT_SOCKET, or else DefaultAgent.
	Agent string
	// Export is asked for the State of a connection that is to leave. Nil: connections never leave.
	Export Exporter
	// Import is shown the State of a connection that is to arrive. Nil accepts every State.
	Import Importer
	// Prepare is asked for the State that can travel ahead. Nil: none.
	Prepare Preparer
	// RecoverTimeout is how long a connection whose agent died during its move waits for the next one before it
	// is closed. Zero means DefaultRecoverTimeout.
	RecoverTimeout time.Duration
	// Unsent bounds what the application has written and the kernel not sent yet, in bytes (TCP_NOTSENT_LOWAT): Write
	// waits beyond it. All of that travels while the connection is frozen, so a slow client's full send buffer of some
	// megabytes would make for some milliseconds. Zero means DefaultUnsent, which does not slow a connection down; a
	// negative value leaves the kernel's.
	Unsent int
	// Logger gets what happens between the listener and the agent. Nil: nothing.
	Logger *slog.Logger

	// framing, when set, returns what follows the bytes that a new connection reads. See HTTP.
	framing func() framer
}

// framer sees the bytes that a connection has read, in order. It must not keep them.
type framer interface{ advance(b []byte) }

func (cfg *Config) validate() error {
	if cfg.Service == "" {
		return errors.New("config: Service is empty: name the service, as on every host that offers it")
	}
	if len(cfg.Service) > maxService {
		return fmt.Errorf("config: Service has %d bytes, at most %d", len(cfg.Service), maxService)
	}
	if cfg.RecoverTimeout < 0 {
		return fmt.Errorf("config: RecoverTimeout is %v, want 0 or more", cfg.RecoverTimeout)
	}
	return nil
}

// withDefaults returns cfg with its zero values replaced.
func (cfg Config) withDefaults() Config {
	if cfg.Agent == "" {
		cfg.Agent = os.Getenv(AgentEnvironment)
	}
	if cfg.Agent == "" {
		cfg.Agent = DefaultAgent
	}
	if cfg.Unsent == 0 {
		cfg.Unsent = DefaultUnsent
	}
	if cfg.RecoverTimeout == 0 {
		cfg.RecoverTimeout = DefaultRecoverTimeout
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return cfg
}
