// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/rehome-net/rehome/handoff"
)

const (
	// maxHead bounds a request's head, in bytes.
	maxHead = 16 << 10
	// chunk is how much is read from disk or network at a time, in bytes.
	chunk = 64 << 10
)

// record is everything a session knows: the State of its connection.
type record struct {
	Service string `json:"service"`
	// Understood counts the bytes that have been read and taken into this record.
	Understood uint64 `json:"understood"`
	// Head is the part of a request's head that has come so far.
	Head []byte `json:"head,omitempty"`
	// Left is how much of an upload is still to come; Sum is the state of its SHA-256.
	Left int64  `json:"left,omitempty"`
	Sum  []byte `json:"sum,omitempty"`
	// Reply is what is being sent.
	Reply reply `json:"reply"`
}

// reply is an answer: a head and then, if Path is set, a file's first Size bytes. What of it has been sent is the
// connection's count of bytes written beyond Base.
type reply struct {
	Active bool   `json:"active,omitempty"`
	Base   uint64 `json:"base,omitempty"`
	Head   []byte `json:"head,omitempty"`
	Path   string `json:"path,omitempty"`
	Size   int64  `json:"size,omitempty"`
	// Last says that the connection ends after this reply.
	Last bool `json:"last,omitempty"`
}

// open opens the reply's file; nil without one.
func (r reply) open(root string) (*os.File, error) {
	if !r.Active || r.Path == "" {
		return nil, nil
	}
	return os.Open(filepath.Join(root, filepath.Clean("/"+r.Path)))
}

// session serves one connection.
type session struct {
	conn *handoff.Conn
	root string

	mu  sync.Mutex // over rec, for the exporter
	rec record
	sum hash.Hash // rec.Sum, in working order
}

// run serves until the connection ends or moves. buf is its own until then.
func (s *session) run(buf []byte) error {
	for {
		var err error
		switch {
		case s.rec.Reply.Active:
			err = s.send(buf)
		case s.rec.Service == EchoService:
			err = s.echo(buf)
		case s.rec.Service == webSocketService:
			err = s.webSocket(buf)
		case s.rec.Left > 0:
			err = s.receive(buf)
		default:
			err = s.request(buf)
		}
		if err != nil {
			return err
		}
	}
}

// read reads and lets take put the bytes into the record.
func (s *session) read(buf []byte, take func(b []byte) error) error {
	n, err := s.conn.Read(buf)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rec.Understood += uint64(n)
	if n > 0 {
		if terr := take(buf[:n]); terr != nil {
			return terr
		}
	}
	return err
}

func (s *session) echo(buf []byte) error {
	return s.read(buf, func(b []byte) error {
		s.reply(bytes.Clone(b))
		return nil
	})
}

// request reads a request's head.
func (s *session) request(buf []byte) error {
	if bytes.Contains(s.rec.Head, []byte("\r\n\r\n")) {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.answer()
	}
	if len(s.rec.Head) > maxHead {
		return fmt.Errorf("request's head exceeds %d bytes", maxHead)
	}
	return s.read(buf, func(b []byte) error {
		s.rec.Head = append(s.rec.Head, b...)
		return nil
	})
}

// answer decides on the request in Head and leaves there what follows it. s.mu is held.
func (s *session) answer() error {
	end := bytes.Index(s.rec.Head, []byte("\r\n\r\n")) + 4
	req, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(s.rec.Head[:end])))
	if err != nil {
		return err
	}
	rest := s.rec.Head[end:]
	s.rec.Head = nil
	defer func() { s.rec.Reply.Last = req.Close }()
	switch req.Method {
	case http.MethodGet:
		s.rec.Head = rest
		if !s.upgrade(req) {
			s.file(req.URL.Path)
		}
		return nil
	case http.MethodPut, http.MethodPost:
		if req.ContentLength < 0 {
			s.reply([]byte("HTTP/1.1 411 Length Required\r\nContent-Length: 0\r\n\r\n"))
			return nil
		}
		s.rec.Left, s.sum = req.ContentLength, sha256.New()
		if err := s.take(rest); err != nil {
			return err
		}
		if s.rec.Left > 0 && strings.EqualFold(req.Header.Get("Expect"), "100-continue") {
			s.reply([]byte("HTTP/1.1 100 Continue\r\n\r\n"))
		}
		return nil
	}
	s.rec.Head = rest
	s.reply([]byte("HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 0\r\n\r\n"))
	return nil
}

// file replies with a file, or says that there is none. s.mu is held.
func (s *session) file(path string) {
	r := reply{Active: true, Path: path}
	f, err := r.open(s.root)
	var info os.FileInfo
	if err == nil {
		info, err = f.Stat()
		_ = f.Close()
	}
	if err != nil || !info.Mode().IsRegular() {
		s.reply([]byte("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"))
		return
	}
	s.reply(fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: %d\r\n\r\n", info.Size()))
	s.rec.Reply.Path, s.rec.Reply.Size = path, info.Size()
}

// receive reads an upload's body.
func (s *session) receive(buf []byte) error { return s.read(buf, s.take) }

// take adds b to the upload; at its end the reply is the body's SHA-256. What is beyond the body is the next request's.
// s.mu is held.
func (s *session) take(b []byte) error {
	if s.sum == nil {
		s.sum = sha256.New()
		if u, ok := s.sum.(encoding.BinaryUnmarshaler); ok {
			if err := u.UnmarshalBinary(s.rec.Sum); err != nil {
				return err
			}
		}
	}
	n := min(int64(len(b)), s.rec.Left)
	s.sum.Write(b[:n])
	s.rec.Left -= n
	s.rec.Head = append(s.rec.Head, b[n:]...)
	if s.rec.Left == 0 {
		body := fmt.Sprintf("%x\n", s.sum.Sum(nil))
		s.reply(fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body))
		s.sum, s.rec.Sum = nil, nil
		return nil
	}
	m, ok := s.sum.(encoding.BinaryMarshaler)
	if !ok {
		return errors.New("this SHA-256 cannot be exported")
	}
	var err error
	s.rec.Sum, err = m.MarshalBinary()
	return err
}

// reply begins to send head. s.mu is held.
func (s *session) reply(head []byte) {
	s.rec.Reply = reply{Active: true, Base: s.conn.BytesWritten(), Head: head}
}

// send sends what is left of the reply.
func (s *session) send(buf []byte) error {
	r := s.rec.Reply
	f, err := r.open(s.root)
	if err != nil {
		return err
	}
	if f != nil {
		defer f.Close() //nolint:errcheck // read only
	}
	head := int64(len(r.Head))
	for {
		done := int64(s.conn.BytesWritten() - r.Base)
		switch {
		case done < head:
			_, err = s.conn.Write(r.Head[done:])
		case done < head+r.Size:
			n, rerr := f.ReadAt(buf[:min(int64(len(buf)), head+r.Size-done)], done-head)
			if n == 0 {
				return fmt.Errorf("file %s: %w", r.Path, rerr)
			}
			_, err = s.conn.Write(buf[:n])
		default:
			s.mu.Lock()
			s.rec.Reply = reply{}
			s.mu.Unlock()
			if r.Last {
				return io.EOF
			}
			return nil
		}
		if err != nil {
			return err
		}
	}
}
