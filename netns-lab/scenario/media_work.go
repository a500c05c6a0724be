// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"context"
	"fmt"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// mediaTime is how long an RTSP session lasts.
const mediaTime = time.Second

// MediaWork says how many sessions of each kind clients have, nearly all at the same time.
type MediaWork struct {
	// Calls are SIP's, over UDP and TCP in turns. Each takes about two seconds.
	Calls int
	// Plays and Records are RTSP's, of about a second; Interleaved those plays whose media come on the signalling connection.
	Plays, Records, Interleaved int
	// Transfers are FTP's, in each of FTPModes.
	Transfers int
	// Queries are sessions of DNS, of a few datagrams each way.
	Queries int
}

// Sessions returns how many sessions that are.
func (w MediaWork) Sessions() int {
	return w.Calls + w.Plays + w.Records + w.Interleaved + w.Transfers*len(FTPModes()) + w.Queries
}

// Flows returns on how many flows the clients send media, at least: one of a call, RTP and RTCP of RTSP, one of a transfer.
func (w MediaWork) Flows() int {
	return w.Calls + 2*(w.Plays+w.Records) + w.Transfers*len(FTPModes())
}

// ServeAll starts all servers of Media on a host.
func (m *Media) ServeAll(ctx context.Context, server string) error {
	for _, over := range []SIPTransport{SIPOverUDP, SIPOverTCP} {
		if err := m.ServeSIP(ctx, server, over); err != nil {
			return err
		}
	}
	if _, err := m.ServeRTSP(ctx, server); err != nil {
		return err
	}
	if err := m.ServeDNS(ctx, server); err != nil {
		return err
	}
	return m.ServeFTP(ctx, server)
}

const (
	// workers bounds how many clients work at a time: each is a process.
	workers = 64
	// betweenSessions is the time between the beginnings of two sessions, so that not all programs start in one moment.
	betweenSessions = 10 * time.Millisecond
)

// Work has clients do their work, and returns how many sessions were completed. The error tells of one that was not. midway is called when
// half of the sessions' time is over; it may be nil.
func (m *Media) Work(ctx context.Context, w MediaWork, midway func()) (int, error) {
	var g errgroup.Group
	g.SetLimit(workers)
	var done atomic.Int64
	begun := 0
	session := func(do func() error) {
		after := time.Duration(begun) * betweenSessions
		begun++
		g.Go(func() error {
			select {
			case <-time.After(after):
			case <-ctx.Done():
				return ctx.Err()
			}
			err := do()
			if err == nil {
				done.Add(1)
			}
			return err
		})
	}
	if midway != nil {
		t := time.AfterFunc(callTime/2, midway)
		defer t.Stop()
	}
	for i := range w.Calls {
		over := []SIPTransport{SIPOverUDP, SIPOverTCP}[i%2]
		session(func() error { return m.CallSIP(ctx, over, i) })
	}
	for i := range w.Plays {
		session(func() error { return m.PlayRTSP(ctx, strconv.Itoa(i), mediaTime) })
	}
	for i := range w.Records {
		session(func() error { return m.RecordRTSP(ctx, "record"+strconv.Itoa(i), mediaTime) })
	}
	for i := range w.Interleaved {
		session(func() error { return m.PlayRTSPInterleaved(ctx, "interleaved"+strconv.Itoa(i), mediaTime) })
	}
	for i := range w.Queries {
		session(func() error { return m.QueryDNS(ctx, i) })
	}
	for range w.Transfers {
		for _, mode := range FTPModes() {
			session(func() error {
				if err := m.FetchFTP(ctx, mode); err != nil {
					return fmt.Errorf("FTP, %s: %w", mode, err)
				}
				return nil
			})
		}
	}
	err := g.Wait()
	return int(done.Load()), err
}
