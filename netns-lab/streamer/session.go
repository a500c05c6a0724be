// SPDX-License-Identifier: Apache-2.0

package streamer

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"

	"github.com/rehome-net/rehome/handoff"
)

// line is the connection of a session: a *handoff.Conn.
type line interface {
	io.ReadWriter
	BytesRead() uint64
	BytesWritten() uint64
	Await(context.Context) error
}

// session serves one connection, and the medium that belongs to it.
type session struct {
	line          line
	local, remote netip.Addr
	port          func() uint16 // returns an even port for RTP
	// calls means that the connection speaks SIP, at signalPort. ending reports whether calls are to end.
	calls      bool
	signalPort uint16
	ending     func() bool
	dial       Dialer
	log        *slog.Logger

	mu  sync.Mutex
	rec record
	// frozen means that the record has been exported: nothing in it changes until it is known where the connection is.
	frozen    bool
	rtp, rtcp *net.UDPConn
	wg        sync.WaitGroup // of who uses the sockets
}

// newSession returns a name, and a medium to send, both at random (RFC 3550, 5.1).
func newSession() (string, outgoing) {
	var b [18]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:8]), outgoing{
		SSRC: binary.BigEndian.Uint32(b[8:]), Sequence: binary.BigEndian.Uint16(b[12:]), Timestamp: binary.BigEndian.Uint32(b[14:]),
	}
}

// run serves until the connection ends or moves.
func (s *session) run() error {
	buf := make([]byte, 4096)
	for {
		if err := s.reply(); err != nil {
			return err
		}
		if ok, err := s.request(); ok || err != nil {
			if err != nil {
				return err
			}
			continue
		}
		n, err := s.line.Read(buf)
		s.mu.Lock()
		s.rec.Understood += uint64(n)
		s.rec.Input = append(s.rec.Input, buf[:n]...)
		s.mu.Unlock()
		if err != nil {
			return err
		}
	}
}

// request decides on a request that has come, if there is one.
func (s *session) request() (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	reply, rest, err := s.converse(s.rec.Input)
	if errors.Is(err, errIncomplete) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	s.rec.Reply, s.rec.Input = reply, rest
	s.rec.Base = s.line.BytesWritten()
	return true, nil
}

// reply sends what is left of the reply. io.EOF: it was the last.
func (s *session) reply() error {
	for {
		s.mu.Lock()
		done := int(s.line.BytesWritten() - s.rec.Base)
		if s.rec.Reply == nil || done >= len(s.rec.Reply) {
			s.rec.Reply = nil
			last := s.rec.Last
			s.mu.Unlock()
			if last {
				return io.EOF
			}
			return nil
		}
		text := s.rec.Reply[done:]
		s.mu.Unlock()
		if _, err := s.line.Write(text); err != nil {
			return err
		}
	}
}

// export returns the record, which stands still from then on.
func (s *session) export(ctx context.Context) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.rec.Understood != s.line.BytesRead() {
		return nil, handoff.ErrNotNow
	}
	if err := s.drain(ctx); err != nil {
		return nil, err
	}
	state, err := json.Marshal(&s.rec)
	s.frozen = err == nil
	return state, err
}

// await waits until it is known whether a frozen session is served here; s.mu is held, and given back in between.
func (s *session) await(ctx context.Context) error {
	for s.frozen {
		s.mu.Unlock()
		err := s.line.Await(ctx)
		s.mu.Lock()
		if err != nil {
			return err
		}
		s.frozen = false
	}
	return nil
}
