// SPDX-License-Identifier: Apache-2.0

package netnslab

import (
	"bytes"
	"context"
	"errors"
	"os/exec"
)

// Cmd is an exec.Cmd whose process runs inside a host. Start, Run, Output and CombinedOutput are this type's own: call those, not the embedded
// ones. The process sees the host's network and the machine's everything else; /sys/class/net and /sys/fs/bpf are the machine's too.
type Cmd struct {
	*exec.Cmd
	host    *Host
	process process
}

// Command returns a command to run inside the host; ctx kills it as with exec.CommandContext. From Start to Wait the lab has its process on record: closing the lab, or
// `rehome lab down` after a crash, ends it. A process started in a lab that is released instead runs on.
func (h *Host) Command(ctx context.Context, name string, args ...string) *Cmd {
	return &Cmd{Cmd: exec.CommandContext(ctx, name, args...), host: h}
}

// Start starts the process: its first thread is cloned from a thread inside the namespace, so there is no moment in which it is elsewhere.
// Pdeathsig refers to that thread, which may end at any time: do not set it.
func (c *Cmd) Start() error {
	if err := c.host.Do(c.Cmd.Start); err != nil {
		return err
	}
	p, err := processOf(c.Process.Pid)
	if err == nil {
		p.Host, p.Command = c.host.spec.Name, c.Path
		c.process = p
		err = c.host.lab.record(p)
	}
	if err != nil {
		// A process that nobody would end must not run.
		return errors.Join(err, c.Process.Kill(), ignoreExit(c.Cmd.Wait()))
	}
	return nil
}

// Wait waits for the end of the process and takes it off the record.
func (c *Cmd) Wait() error {
	err := c.Cmd.Wait()
	if c.process.PID != 0 && c.ProcessState != nil {
		err = errors.Join(err, c.host.lab.forget(c.process))
		c.process = process{}
	}
	return err
}

// Run starts the process and waits for its end.
func (c *Cmd) Run() error {
	if err := c.Start(); err != nil {
		return err
	}
	return c.Wait()
}

// Output runs the process and returns what it wrote to standard output.
func (c *Cmd) Output() ([]byte, error) {
	if c.Stdout != nil {
		return nil, errors.New("output: Stdout is set")
	}
	var out bytes.Buffer
	c.Stdout = &out
	err := c.Run()
	return out.Bytes(), err
}

// CombinedOutput runs the process and returns what it wrote to standard output and standard error.
func (c *Cmd) CombinedOutput() ([]byte, error) {
	if c.Stdout != nil || c.Stderr != nil {
		return nil, errors.New("combined output: Stdout or Stderr is set")
	}
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	err := c.Run()
	return out.Bytes(), err
}

// ignoreExit drops the error that only says how the process ended.
func ignoreExit(err error) error {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return nil
	}
	return err
}
