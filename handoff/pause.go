// SPDX-License-Identifier: Apache-2.0

package handoff

import (
	"context"
	"fmt"
	"time"
)

// pause stops the calls on the connection and returns nil when none is inside any more: the counts are exact then. On
// an error the caller ends the export.
func (c *Conn) pause(ctx context.Context) error {
	c.mu.Lock()
	if !c.stop() && c.phase != exporting {
		defer c.mu.Unlock()
		return c.unpausable()
	}
	c.mu.Unlock()
	for !c.reading.empty() || !c.writing.empty() {
		select {
		case <-c.drained:
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ErrNotNow, ctx.Err())
		}
	}
	return nil
}

// unpausable returns why the connection cannot be exported in its phase. c.mu is held.
func (c *Conn) unpausable() error {
	if err := c.phase.err(); err != nil {
		return err
	}
	return fmt.Errorf("%w: its phase is %d", ErrNotNow, c.phase)
}

// stop shuts both lanes and expels who waits inside them for the network. c.mu is held.
func (c *Conn) stop() bool {
	if !c.step(eventPause) {
		return false
	}
	// The order matters: who is inside entered before the lanes were shut, hence read pauses before it grows, hence
	// knows a pause when the deadline strikes. See interrupted.
	c.reading.close()
	c.writing.close()
	c.pauses.Add(1)
	_ = c.tcp.SetDeadline(time.Unix(1, 0))
	return true
}

// resume lets the calls go on, or carries out the Close that came in the meantime. It does nothing unless the
// connection is paused.
func (c *Conn) resume() {
	c.mu.Lock()
	after := c.goOn()
	c.mu.Unlock()
	after()
}

// goOn is resume with c.mu held; the caller calls what it returns without c.mu.
func (c *Conn) goOn() (after func()) {
	if !c.step(eventResume) {
		return func() {}
	}
	if c.phase == closed {
		_ = c.closeSocket()
		return func() { c.onEnd(c) }
	}
	_ = c.tcp.SetReadDeadline(c.reading.deadline)
	_ = c.tcp.SetWriteDeadline(c.writing.deadline)
	c.reading.open()
	c.writing.open()
	return func() {}
}

// commit gives the paused connection to the agent and returns a descriptor of its socket. It fails when the connection
// is no longer paused.
func (c *Conn) commit() (fd int, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.phase != exporting {
		return -1, c.unpausable()
	}
	if fd, err = dupConn(c.tcp); err != nil {
		return -1, err
	}
	c.step(eventExported)
	return fd, nil
}

// descriptor returns a descriptor of the socket of a connection that is the agent's, for an agent that took over.
func (c *Conn) descriptor() (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.tcp == nil {
		return dupFD(c.socket)
	}
	return dupConn(c.tcp)
}

// finish ends a connection whose socket is, or was, the agent's: e is eventMigrated, eventWithdraw or eventAbandon.
func (c *Conn) finish(e event) {
	c.mu.Lock()
	ok := c.step(e)
	if ok {
		_ = c.closeSocket()
	}
	c.mu.Unlock()
	if ok {
		c.onEnd(c)
	}
}
