// SPDX-License-Identifier: Apache-2.0

package handoff

import (
	"io"
	"io/fs"
	"syscall"
)

// file is what ReadFrom needs of an *os.File: io.Copy passes one in a wrapping of package os's own.
type file interface {
	io.ReadSeeker
	syscall.Conn
	Stat() (fs.FileInfo, error)
}

// ReadFrom implements io.ReaderFrom. A regular file is sent by sendfile(2); everything else is copied, since what
// splice(2) has taken from a socket is lost when a pause interrupts it.
func (c *Conn) ReadFrom(r io.Reader) (int64, error) {
	source, limited := r, (*io.LimitedReader)(nil)
	if lr, ok := r.(*io.LimitedReader); ok {
		source, limited = lr.R, lr
	}
	f, ok := source.(file)
	if !ok {
		return c.copyFrom(r)
	}
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return c.copyFrom(r)
	}
	start, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		return c.copyFrom(r)
	}
	limit := int64(-1)
	if limited != nil {
		limit = limited.N
	}
	n, err := c.sendFile(f, start, limit)
	if limited != nil {
		limited.N -= n
	}
	return n, err
}

func (c *Conn) copyFrom(r io.Reader) (int64, error) {
	// The struct hides ReadFrom, which io.Copy would call.
	return io.Copy(struct{ io.Writer }{c}, r)
}

// sendFile sends f from offset start on, at most limit bytes unless limit is negative, and leaves f's offset
// behind what has been sent.
func (c *Conn) sendFile(f file, start, limit int64) (n int64, err error) {
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	for limit < 0 || n < limit {
		pauses := c.pauses.Load()
		if !c.enter(&c.writing) {
			if err := c.park(&c.writing); err != nil {
				return n, c.opError("write", err)
			}
			continue
		}
		want := int64(maxWrite)
		if limit >= 0 {
			want = min(want, limit-n)
		}
		step, err := c.tcp.ReadFrom(&io.LimitedReader{R: f, N: want})
		n += step
		c.writing.bytes.Add(uint64(step))
		c.leave(&c.writing)
		if err != nil {
			// A fallback to copying, inside package net, may have read more than it could write.
			if _, serr := f.Seek(start+n, io.SeekStart); serr != nil {
				return n, serr
			}
			if !c.interrupted(err, pauses) {
				return n, err
			}
			continue
		}
		if step == 0 {
			return n, nil
		}
	}
	return n, nil
}
