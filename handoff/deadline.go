// SPDX-License-Identifier: Apache-2.0

package handoff

import "time"

// SetDeadline implements net.Conn.
func (c *Conn) SetDeadline(t time.Time) error { return c.setDeadline(t, true, true) }

// SetReadDeadline implements net.Conn.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.setDeadline(t, true, false) }

// SetWriteDeadline implements net.Conn.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.setDeadline(t, false, true) }

// setDeadline keeps the application's deadline; the socket's own is a pause's instrument while one lasts.
func (c *Conn) setDeadline(t time.Time, read, write bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.phase.err(); err != nil && c.phase != importing {
		return c.opError("set", err)
	}
	if read {
		c.reading.deadline = t
	}
	if write {
		c.writing.deadline = t
	}
	if c.phase != serving {
		c.broadcast()
		return nil
	}
	switch {
	case read && write:
		return c.tcp.SetDeadline(t)
	case read:
		return c.tcp.SetReadDeadline(t)
	default:
		return c.tcp.SetWriteDeadline(t)
	}
}
