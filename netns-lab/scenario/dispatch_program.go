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
	"time"

	"golang.org/x/sys/unix"
)

// program is a program that forks, in a process group of its own: a server with its workers.
type program struct {
	*daemon
	group int
	// space is the network namespace as /proc shows it. A process of the same group elsewhere is a stranger that has got
	// the number after the program's end.
	space string
}

// launchProgram starts a program in a host.
func (c *Cluster) launchProgram(ctx context.Context, host, name string, command ...string) (*program, error) {
	d, err := c.launch(ctx, host, name, command, &unix.SysProcAttr{Setpgid: true})
	if err != nil {
		return nil, err
	}
	p := &program{daemon: d, group: d.cmd.Process.Pid}
	h, err := c.Lab.Host(host)
	if err == nil {
		err = h.Do(func() (err error) {
			p.space, err = os.Readlink("/proc/thread-self/ns/net")
			return err
		})
	}
	if err != nil {
		return nil, errors.Join(err, kill(d))
	}
	return p, nil
}

// processes returns the program's processes that live now.
func (p *program) processes() ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var list []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		text, err := os.ReadFile(filepath.Join("/proc", e.Name(), "stat"))
		if err != nil {
			continue // it has ended since
		}
		group, state, err := parseStat(string(text))
		if err != nil {
			return nil, fmt.Errorf("process %d: %w", pid, err)
		}
		if group != p.group || state == "Z" {
			continue
		}
		if space, err := os.Readlink(filepath.Join("/proc", e.Name(), "ns/net")); err == nil && space == p.space {
			list = append(list, pid)
		}
	}
	return list, nil
}

// parseStat reads the process group and the state from /proc/PID/stat. The name, in parentheses, may contain anything.
func parseStat(text string) (group int, state string, err error) {
	fields := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
	if len(fields) < 3 {
		return 0, "", fmt.Errorf("stat %q: too short", text)
	}
	group, err = strconv.Atoi(fields[2])
	return group, fields[0], err
}

// stop ends the program in order: SIGTERM, and after startTimeout SIGKILL, which is an error.
func (p *program) stop() error {
	if p.ended() {
		return p.kill() // what it left behind
	}
	if err := p.cmd.Process.Signal(unix.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-p.done:
		return p.kill()
	case <-time.After(startTimeout):
		return errors.Join(fmt.Errorf("%s does not end on SIGTERM", p.log), p.kill())
	}
}

func (p *program) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// kill ends all of the program's processes as a crash would, and returns when they are gone.
func (p *program) kill() error {
	deadline := time.Now().Add(startTimeout)
	for {
		pids, err := p.processes()
		if err != nil {
			return err
		}
		if len(pids) == 0 {
			<-p.done
			return nil
		}
		for _, pid := range pids {
			if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("kill %d: %w", pid, err)
			}
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s: processes %v do not end", p.log, pids)
		}
		time.Sleep(time.Millisecond)
	}
}
