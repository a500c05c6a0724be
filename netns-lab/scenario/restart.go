// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/agent/api"
	netnslab "github.com/rehome-net/rehome/netns-lab"
)

// RestartAgent ends the agent of a host of a standing cluster in order, and starts it again with command.
func RestartAgent(ctx context.Context, lab string, command []string, host string) (err error) {
	l, err := netnslab.Reopen(lab)
	if err != nil {
		return err
	}
	c := &Cluster{
		Lab: l, cfg: ClusterConfig{Command: command}, dir: ClusterDir(lab),
		agents: make(map[string]*daemon), servers: make(map[string]*daemon), clients: make(map[string]*api.Client),
	}
	defer func() { err = errors.Join(err, c.Release()) }()
	if err := c.endRecorded(ctx, host, "agent"); err != nil {
		return err
	}
	return c.StartAgent(ctx, host)
}

// endRecorded ends a process that another program has started.
func (c *Cluster) endRecorded(ctx context.Context, host, name string) error {
	text, err := os.ReadFile(filepath.Join(c.dir, host, name+".pid"))
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("host %q has no %s", host, name)
	}
	if err != nil {
		return err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return fmt.Errorf("%s.pid: %w", name, err)
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil // it has ended by itself
	}
	if err != nil {
		return fmt.Errorf("process %d: %w", pid, err)
	}
	defer unix.Close(fd) //nolint:errcheck // nothing was written
	if cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); err != nil || !strings.Contains(string(cmdline), c.configPath(host)) {
		return fmt.Errorf("process %d is not the %s of %s", pid, name, host)
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGTERM, nil, 0); err != nil {
		return fmt.Errorf("process %d: %w", pid, err)
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		// A zombie counts as ended; whoever has started it may be gone.
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 50)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return os.NewSyscallError("poll", err)
		}
		if n > 0 {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("process %d does not end: %w", pid, err)
		}
	}
}
