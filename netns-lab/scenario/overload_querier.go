// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"context"
	"errors"
	"net"
	"os"
	"sync/atomic"
	"time"
)

// querier plays sessions of datagrams: the questions of a session come from one port, one after the other, and a session is nothing else.
type querier struct {
	dial     dialer
	patience time.Duration
	// resend is after which time a question is asked again. A session's first one is not: who hears nothing then has been refused, and gives up after
	// its patience.
	resend time.Duration
	// run is that of its questions.
	run int
	// sent counts datagrams.
	sent atomic.Int64
}

// probeSession is the number of sessions that only look whether they are served.
const probeSession = 1 << 20

// play implements player.
func (c *querier) play(ctx context.Context, all []visit, length time.Duration) []end {
	return playAll(ctx, all, length, func(ctx context.Context, i int, begin time.Time) end {
		e := end{}
		e.err = c.session(ctx, i, all[i], func(resent int) {
			if e.requests++; e.requests == 1 {
				e.first = time.Since(begin)
			}
			e.resent += resent
		})
		e.fate = c.fateOf(ctx, e.requests, e.err)
		return e
	})
}

// probe implements player.
func (c *querier) probe(ctx context.Context) error {
	return c.session(ctx, probeSession, visit{}, func(int) {})
}

// fateOf says what became of a session. Whose first question nobody has answered counts as refused.
func (c *querier) fateOf(ctx context.Context, answered int, err error) fate {
	switch {
	case err == nil:
		return visitCompleted
	case ctx.Err() != nil:
		return visitCut
	case !errors.Is(err, os.ErrDeadlineExceeded):
		return visitFailed
	case answered == 0:
		return visitRefused
	}
	return visitLate
}

// session plays one session, and tells of each answer how often the question had been asked again.
func (c *querier) session(ctx context.Context, number int, v visit, answered func(resent int)) error {
	conn, err := c.dial(ctx)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer func() {
		stop()
		_ = conn.Close()
	}()
	for i := 0; ; i++ {
		resent, err := c.ask(conn, question{run: c.run, session: number, number: i})
		if err != nil {
			return err
		}
		answered(resent)
		if i == len(v.thinks) {
			return nil
		}
		if err := pause(ctx, v.thinks[i]); err != nil {
			return err
		}
	}
}

// ask asks until there is an answer, or nobody waits for it any more.
func (c *querier) ask(conn net.Conn, q question) (resent int, err error) {
	deadline := time.Now().Add(c.patience)
	for ; ; q.try++ {
		datagram, err := q.query()
		if err != nil {
			return q.try, err
		}
		if _, err := conn.Write(datagram); err != nil {
			return q.try, err
		}
		c.sent.Add(1)
		until := deadline
		if again := time.Now().Add(c.resend); q.number > 0 && again.Before(deadline) {
			until = again
		}
		err = answerTo(conn, q, until)
		if err == nil || until.Equal(deadline) || !errors.Is(err, os.ErrDeadlineExceeded) {
			return q.try, err
		}
	}
}

// answerTo waits for the answer to a question, whichever try it is of.
func answerTo(conn net.Conn, q question, until time.Time) error {
	if err := conn.SetReadDeadline(until); err != nil {
		return err
	}
	for into := make([]byte, maxQuestion); ; {
		n, err := conn.Read(into)
		if err != nil {
			return err
		}
		got, err := openAnswer(into[:n])
		if err != nil {
			return err
		}
		if got.number == q.number {
			return nil
		}
	}
}
