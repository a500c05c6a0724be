// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"time"
)

// fate is what became of a session.
type fate int

const (
	visitCompleted fate = iota // every request was answered in time
	visitRefused               // turned away with 503 at its first request
	visitLate                  // given up, as an answer took too long, or a later request was refused
	visitFailed                // its connection broke, or it was answered nonsense
	visitCut                   // going on at the end of the run
	fates                      // how many there are
)

// end is a session's end.
type end struct {
	fate fate
	// at is when, from the beginning; requests were answered.
	at       time.Duration
	requests int
	err      error
	// first is when the first was, and resent how often others had to be asked again until they were; of sessions of datagrams only.
	first  time.Duration
	resent int
}

// player plays sessions.
type player interface {
	// play plays all sessions at their times and returns how each ended. What goes on at the end of length is cut off.
	play(ctx context.Context, all []visit, length time.Duration) []end
	// probe plays a session of one request.
	probe(ctx context.Context) error
}

// dialer connects to the service.
type dialer func(ctx context.Context) (net.Conn, error)

// patient plays sessions: it waits so long for each answer, from before it connects for the first.
type patient struct {
	dial     dialer
	patience time.Duration
	// each has a connection for every request, instead of one for the session. A request of a session that has begun is then sent again when
	// it is refused: after a quarter of the patience, and then half of it.
	each bool
	// silent means that who is refused hears nothing: its SYN is dropped, and it gives up before it sends another.
	silent bool
}

// play implements player.
func (p *patient) play(ctx context.Context, all []visit, length time.Duration) []end {
	return playAll(ctx, all, length, func(ctx context.Context, i int, _ time.Time) end {
		n, err := p.session(ctx, all[i])
		return end{fate: p.fateOf(ctx, n, err), requests: n, err: err}
	})
}

// probe implements player.
func (p *patient) probe(ctx context.Context) error {
	_, err := p.session(ctx, visit{})
	return err
}

// playAll has one play every session at its time; begin is that of the run, the number the session's.
func playAll(ctx context.Context, all []visit, length time.Duration, one func(ctx context.Context, number int, begin time.Time) end) []end {
	begin := time.Now()
	ctx, cancel := context.WithDeadline(ctx, begin.Add(length))
	defer cancel()
	ends := make([]end, len(all))
	var wg sync.WaitGroup
	for i, v := range all {
		wg.Go(func() {
			e := end{fate: visitCut}
			if e.err = pause(ctx, time.Until(begin.Add(v.at))); e.err == nil {
				e = one(ctx, i, begin)
			}
			e.at = time.Since(begin)
			ends[i] = e
		})
	}
	wg.Wait()
	return ends
}

// errRefused is a 503, errUnconnected that there was no connection in time.
var (
	errRefused     = errors.New("503 Service Unavailable")
	errUnconnected = errors.New("not connected")
)

func (p *patient) fateOf(ctx context.Context, answered int, err error) fate {
	var timeout interface{ Timeout() bool }
	switch {
	case err == nil:
		return visitCompleted
	case errors.Is(err, errRefused) && answered == 0:
		return visitRefused
	case ctx.Err() != nil:
		return visitCut
	case p.silent && answered == 0 && errors.Is(err, errUnconnected):
		return visitRefused
	case errors.Is(err, errRefused), errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return visitLate
	}
	return visitFailed
}

// session plays one session and returns how many of its requests were answered.
func (p *patient) session(ctx context.Context, v visit) (answered int, err error) {
	l := &line{dial: p.dial}
	defer l.hangUp()
	for {
		if err := p.request(ctx, l, answered > 0); err != nil {
			return answered, err
		}
		answered++
		if answered > len(v.thinks) {
			return answered, nil
		}
		if err := pause(ctx, v.thinks[answered-1]); err != nil {
			return answered, err
		}
	}
}

// request makes one request; again says that it is sent again when it is refused.
func (p *patient) request(ctx context.Context, l *line, again bool) error {
	deadline := time.Now().Add(p.patience)
	for wait := p.patience / 4; ; wait *= 2 {
		err := l.ask(ctx, deadline)
		if p.each {
			l.hangUp()
		}
		if !again || !p.each || !errors.Is(err, errRefused) || time.Now().Add(wait).After(deadline) {
			return err
		}
		if err := pause(ctx, wait); err != nil {
			return err
		}
	}
}

// line is a client's connection, if it has one.
type line struct {
	dial dialer
	conn net.Conn
	in   *bufio.Reader
	stop func() bool
}

// ask connects, unless there is a connection, and makes a request. The end of ctx ends the connection.
func (l *line) ask(ctx context.Context, deadline time.Time) error {
	if l.conn == nil {
		dctx, cancel := context.WithDeadline(ctx, deadline)
		defer cancel()
		c, err := l.dial(dctx)
		if err != nil {
			return fmt.Errorf("%w: %w", errUnconnected, err)
		}
		l.conn, l.in = c, bufio.NewReader(c)
		l.stop = context.AfterFunc(ctx, func() { _ = c.Close() })
	}
	if err := l.conn.SetDeadline(deadline); err != nil {
		return err
	}
	return ask(l.conn, l.in)
}

func (l *line) hangUp() {
	if l.conn == nil {
		return
	}
	l.stop()
	_ = l.conn.Close()
	l.conn = nil
}

// ask sends a request and reads the answer.
func ask(c net.Conn, in *bufio.Reader) error {
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: queue\r\n\r\n"); err != nil {
		return err
	}
	resp, err := http.ReadResponse(in, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close() //nolint:errcheck // read to its end
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	switch resp.StatusCode {
	case http.StatusOK:
		return nil
	case http.StatusServiceUnavailable:
		return errRefused
	}
	return fmt.Errorf("status %s", resp.Status)
}

// pause waits.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
