// SPDX-License-Identifier: Apache-2.0

package handoff

import "context"

// Await waits while it is open where the connection will be, and returns nil when it is served here: at once in the ordinary case; after a move
// that has failed, where the connection was; after one that has succeeded, where it has arrived. Elsewhere it returns ErrMigrated, or why the
// connection is over, or the error of ctx.
//
// It is for what goes along with a connection and is not carried by it, such as the datagrams of a media session: what was told in State must
// stand still after Export, and what Import has made must wait, until Await has returned.
func (c *Conn) Await(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.phase.parks() || c.phase == importing {
		if c.wake == nil {
			c.wake = make(chan struct{})
		}
		wake := c.wake
		c.mu.Unlock()
		select {
		case <-wake:
			c.mu.Lock()
		case <-ctx.Done():
			c.mu.Lock()
			return ctx.Err()
		}
	}
	return c.phase.err()
}
