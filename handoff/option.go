// SPDX-License-Identifier: Apache-2.0

package handoff

import (
	"net"
	"syscall"
	"time"
)

// control calls f when the connection is not being moved: what it would set is in the snapshot already then.
func (c *Conn) control(f func() error) error {
	for !c.enter(&c.writing) {
		if err := c.park(nil); err != nil {
			return c.opError("set", err)
		}
	}
	defer c.leave(&c.writing)
	return f()
}

// CloseRead shuts down the reading side, like net.TCPConn.CloseRead.
func (c *Conn) CloseRead() error { return c.control(func() error { return c.tcp.CloseRead() }) }

// CloseWrite sends FIN, like net.TCPConn.CloseWrite.
func (c *Conn) CloseWrite() error { return c.control(func() error { return c.tcp.CloseWrite() }) }

// SetNoDelay is net.TCPConn.SetNoDelay. Like every option it travels with the connection.
func (c *Conn) SetNoDelay(on bool) error {
	return c.control(func() error { return c.tcp.SetNoDelay(on) })
}

// SetLinger is net.TCPConn.SetLinger.
func (c *Conn) SetLinger(sec int) error {
	return c.control(func() error { return c.tcp.SetLinger(sec) })
}

// SetKeepAlive is net.TCPConn.SetKeepAlive.
func (c *Conn) SetKeepAlive(on bool) error {
	return c.control(func() error { return c.tcp.SetKeepAlive(on) })
}

// SetKeepAlivePeriod is net.TCPConn.SetKeepAlivePeriod.
func (c *Conn) SetKeepAlivePeriod(d time.Duration) error {
	return c.control(func() error { return c.tcp.SetKeepAlivePeriod(d) })
}

// SetKeepAliveConfig is net.TCPConn.SetKeepAliveConfig.
func (c *Conn) SetKeepAliveConfig(cfg net.KeepAliveConfig) error {
	return c.control(func() error { return c.tcp.SetKeepAliveConfig(cfg) })
}

// SetReadBuffer is net.TCPConn.SetReadBuffer.
func (c *Conn) SetReadBuffer(bytes int) error {
	return c.control(func() error { return c.tcp.SetReadBuffer(bytes) })
}

// SetWriteBuffer is net.TCPConn.SetWriteBuffer.
func (c *Conn) SetWriteBuffer(bytes int) error {
	return c.control(func() error { return c.tcp.SetWriteBuffer(bytes) })
}

// SyscallConn returns the raw connection. Its methods wait while the connection is being moved, like Read and Write,
// but what they transfer is not in BytesRead and BytesWritten: an Exporter has to know of it by itself. The
// descriptor must not be used, nor kept, outside of the function that is given it.
func (c *Conn) SyscallConn() (syscall.RawConn, error) { return rawConn{c}, nil }

type rawConn struct{ c *Conn }

func (r rawConn) Control(f func(fd uintptr)) error {
	return r.c.control(func() error {
		raw, err := r.c.tcp.SyscallConn()
		if err != nil {
			return err
		}
		return raw.Control(f)
	})
}

func (r rawConn) Read(f func(fd uintptr) bool) error {
	return r.transfer("raw-read", &r.c.reading, func(raw syscall.RawConn) error { return raw.Read(f) })
}

func (r rawConn) Write(f func(fd uintptr) bool) error {
	return r.transfer("raw-write", &r.c.writing, func(raw syscall.RawConn) error { return raw.Write(f) })
}

// transfer calls f until it ended for another reason than a pause.
func (r rawConn) transfer(op string, l *lane, f func(syscall.RawConn) error) error {
	c := r.c
	for {
		pauses := c.pauses.Load()
		if !c.enter(l) {
			if err := c.park(l); err != nil {
				return c.opError(op, err)
			}
			continue
		}
		raw, err := c.tcp.SyscallConn()
		if err == nil {
			err = f(raw)
		}
		c.leave(l)
		if err == nil || !c.interrupted(err, pauses) {
			return err
		}
	}
}
