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

// activate lets calls pass: the connection is live and this process's.
func (c *Conn) activate() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.phase != importing {
		return c.phase.err()
	}
	tcp, err := adoptSocket(c.socket)
	c.socket = -1
	if err != nil {
		c.step(eventWithdraw)
		return err
	}
	c.tcp = tcp
	_ = tcp.SetReadDeadline(c.reading.deadline)
	_ = tcp.SetWriteDeadline(c.writing.deadline)
	c.step(eventActivate)
	c.reading.open()
	c.writing.open()
	return nil
}
