// SPDX-License-Identifier: Apache-2.0

package handoff

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/rehome-net/rehome/handoff/wire"
)

// newImported returns a Conn, in phase importing, for the frozen socket fd, which it owns; on an error fd is closed. m
// bears the whole State.
func newImported(m *wire.Import, fd int, onEnd func(*Conn)) (*Conn, error) {
	fail := func(err error) (*Conn, error) {
		closeFD(fd)
		return nil, fmt.Errorf("import %v: %w", m.Flow, err)
	}
	local, remote, err := socketAddrs(fd)
	if err != nil {
		return fail(err)
	}
	if f := flowOf(local, remote); f != m.Flow {
		return fail(fmt.Errorf("socket is of flow %v", f))
	}
	e, err := parseEnvelope(m.State)
	if err != nil {
		return fail(err)
	}
	c := &Conn{
		drained: make(chan struct{}, 1), ready: make(chan struct{}, 1), onEnd: onEnd,
		local: local, remote: remote, flow: m.Flow, epoch: m.Epoch, since: time.Now(),
		state: State{Data: e.data, Ahead: m.Ahead}, isImported: !m.Fresh, socket: fd, phase: importing,
	}
	c.reading.bytes.Store(e.read)
	c.writing.bytes.Store(e.written)
	c.reading.close()
	c.writing.close()
	return c, nil
}

// askImporter asks ask, if there is one. An Importer that closes c refuses it too.
func (c *Conn) askImporter(ctx context.Context, ask Importer) error {
	if ask != nil {
		if err := ask(ctx, c, c.state); err != nil {
			return err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.phase != importing {
		return errors.New("importer closed the connection")
	}
	return nil
}

// adopt makes the frozen socket ready for use. The importer's goroutine does it once the agent has its answer and is busy with the entry,
// so that the client does not wait for it: nothing of it reaches the network.
func (c *Conn) adopt() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.phase == importing {
		_ = c.adoptOnce() // activate says it again
	}
}

// adoptOnce is adopt with c.mu held; it does nothing the second time.
func (c *Conn) adoptOnce() (err error) {
	if c.tcp != nil {
		return nil
	}
	if c.socket < 0 {
		return errors.New("the socket could not be made ready")
	}
	c.tcp, err = adoptSocket(c.socket)
	c.socket = -1
	return err
}

// activate lets calls pass: the connection is live and this process's.
func (c *Conn) activate() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.phase != importing {
		return c.phase.err()
	}
	if err := c.adoptOnce(); err != nil {
		c.step(eventWithdraw)
		return err
	}
	if d := c.reading.deadline; !d.IsZero() {
		_ = c.tcp.SetReadDeadline(d)
	}
	if d := c.writing.deadline; !d.IsZero() {
		_ = c.tcp.SetWriteDeadline(d)
	}
	c.step(eventActivate)
	c.reading.open()
	c.writing.open()
	return nil
}
