// SPDX-License-Identifier: Apache-2.0

package netnslab

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"time"
)

// Download is what a client saw of one stream of bytes.
type Download struct {
	// Bytes is how many arrived, Elapsed from the first Read to the end.
	Bytes   int64
	Elapsed time.Duration
	// LongestGap is the longest time that one Read waited: the stall as the application sees it, without its own work between reads.
	LongestGap time.Duration
	// GapAt is the position in the stream at which it waited that long.
	GapAt int64
	// FirstByte is how long the first Read took. It does not count as a gap: it is the server's time to answer.
	FirstByte time.Duration
	// SHA256 is the sum of all bytes.
	SHA256 [sha256.Size]byte
}

// Rate returns the mean speed in bits per second.
func (d Download) Rate() float64 {
	if d.Elapsed <= 0 {
		return 0
	}
	return float64(d.Bytes) * 8 / d.Elapsed.Seconds()
}

// StreamReader is what Stream reads from: a net.Conn, or the pipe that an ordinary program writes to.
type StreamReader interface {
	io.Reader
	SetReadDeadline(t time.Time) error
}

// Stream reads from conn until its end, or until size bytes came if size is not negative, and measures. An end before size bytes is io.ErrUnexpectedEOF.
// When ctx ends first the read is interrupted through conn's read deadline. The Download is right as far as it came, also with an error.
func Stream(ctx context.Context, conn StreamReader, size int64) (Download, error) {
	defer interruptRead(ctx, conn)()
	var d Download
	h := sha256.New()
	buf := make([]byte, 256<<10)
	begin := time.Now()
	err := func() error {
		for size < 0 || d.Bytes < size {
			p := buf
			if size >= 0 {
				p = buf[:min(int64(len(buf)), size-d.Bytes)]
			}
			asked := time.Now()
			n, err := conn.Read(p)
			waited := time.Since(asked)
			switch {
			case n > 0 && d.Bytes == 0:
				d.FirstByte = waited
			case d.Bytes > 0 && waited > d.LongestGap:
				d.LongestGap, d.GapAt = waited, d.Bytes
			}
			h.Write(p[:n])
			d.Bytes += int64(n)
			switch {
			case errors.Is(err, io.EOF) && (size < 0 || d.Bytes == size):
				return nil
			case errors.Is(err, io.EOF):
				return fmt.Errorf("download: %d of %d bytes: %w", d.Bytes, size, io.ErrUnexpectedEOF)
			case err != nil && ctx.Err() != nil:
				return fmt.Errorf("download: %d bytes: %w", d.Bytes, ctx.Err())
			case err != nil:
				return fmt.Errorf("download: %d bytes: %w", d.Bytes, err)
			}
		}
		return nil
	}()
	d.Elapsed = time.Since(begin)
	h.Sum(d.SHA256[:0])
	return d, err
}

// interruptRead makes conn's reads return when ctx ends. The function it returns ends that, and undoes it.
func interruptRead(ctx context.Context, conn StreamReader) func() {
	stop := context.AfterFunc(ctx, func() {
		_ = conn.SetReadDeadline(time.Unix(1, 0)) // a closed connection needs no interruption
	})
	return func() { stop() }
}
