// SPDX-License-Identifier: Apache-2.0

package reqsk

import (
	"fmt"
	"log/slog"
	"strings"
	"time"
)

const (
	defaultDevice   = "rhinj%d"
	defaultPatience = time.Second
	// maxLanes is MAX_LANES of bpf/reqsk.c.
	maxLanes = 64
)

// Config says how to inject. The zero value is ready to use.
type Config struct {
	// Device is the name of the tun device, for firewalls that filter by interface; "%d" in it becomes a number. Empty means "rhinj%d".
	Device string
	// Lanes is how many connections can be injected at the same moment, 64 at most. 0 means one for each CPU the process may use.
	Lanes int
	// Patience is how long a server may leave a request that is larger than its receive buffer unread before the
	// injection is undone. 0 means one second.
	Patience time.Duration
	// Logger gets a line about what Inject cannot return: a degraded kernel. Nil means none.
	Logger *slog.Logger
}

func (c Config) validate() error {
	switch {
	case c.Lanes < 0 || c.Lanes > maxLanes:
		return fmt.Errorf("config: Lanes is %d: want 0 to %d", c.Lanes, maxLanes)
	case c.Patience < 0:
		return fmt.Errorf("config: Patience is %v: want 0 or more", c.Patience)
	case strings.ContainsAny(c.Device, "/ "):
		return fmt.Errorf("config: Device is %q: want the name of an interface", c.Device)
	}
	return nil
}
