// SPDX-License-Identifier: Apache-2.0

package handoff

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Bounds of the wait between two calls of an exporter that said ErrNotNow; it doubles from one to the other.
const (
	minExportRetry = time.Millisecond
	maxExportRetry = 50 * time.Millisecond
)

// ExportReady says that the connection has come to a point where it can be exported. If its Exporter has said ErrNotNow
// and an agent still waits, the connection is paused before ExportReady returns and the Exporter is asked again: no
// read or write begun afterwards comes in between. Else it costs next to nothing.
func (c *Conn) ExportReady() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.exportWaits {
		return
	}
	c.exportReady = true
	c.stop()
	select {
	case c.ready <- struct{}{}:
	default:
	}
}

// export pauses the connection and returns its State for the wire, asking again for as long as the Exporter says
// ErrNotNow and ctx lasts. On success the connection is left paused; else it goes on. When ctx ends it goes on at once,
// even if the Exporter does not return.
func (c *Conn) export(ctx context.Context, ask Exporter) ([]byte, error) {
	c.mu.Lock()
	c.exportWaits = true
	c.mu.Unlock()
	stop := context.AfterFunc(ctx, c.endExport)
	defer stop()
	data, err := c.askExporter(ctx, ask)
	if err != nil {
		c.endExport()
		return nil, err
	}
	c.mu.Lock()
	c.exportWaits = false
	c.mu.Unlock()
	return envelope{read: c.BytesRead(), written: c.BytesWritten(), data: data}.append(nil), nil
}

// askExporter is the loop of export.
func (c *Conn) askExporter(ctx context.Context, ask Exporter) ([]byte, error) {
	for retry := minExportRetry; ; retry = min(2*retry, maxExportRetry) {
		if err := c.pause(ctx); err != nil {
			return nil, err
		}
		c.mu.Lock()
		c.exportReady = false
		c.mu.Unlock()
		data, err := ask(ctx, c)
		switch {
		case ctx.Err() != nil:
			return nil, fmt.Errorf("%w: %w", ErrNotNow, ctx.Err())
		case err == nil && len(data) > MaxState:
			return nil, fmt.Errorf("%w: State of %d bytes, at most %d", ErrNotMovable, len(data), MaxState)
		case err == nil:
			return data, nil
		case !errors.Is(err, ErrNotNow):
			return nil, err
		}
		if c.resumeUnlessReady() {
			if err := c.awaitReady(ctx, retry); err != nil {
				return nil, err
			}
		}
	}
}

// resumeUnlessReady lets the connection go on, unless ExportReady came while the Exporter was saying no.
func (c *Conn) resumeUnlessReady() (resumed bool) {
	c.mu.Lock()
	if c.exportReady {
		c.mu.Unlock()
		return false
	}
	after := c.goOn()
	c.mu.Unlock()
	after()
	return true
}

func (c *Conn) awaitReady(ctx context.Context, limit time.Duration) error {
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case <-c.ready:
	case <-t.C:
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", ErrNotNow, ctx.Err())
	}
	return nil
}

// endExport ends an export that has come to nothing.
func (c *Conn) endExport() {
	c.mu.Lock()
	c.exportWaits = false
	after := func() {}
	if c.phase == exporting {
		after = c.goOn()
	}
	c.mu.Unlock()
	after()
}
