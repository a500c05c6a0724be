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
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// DescriptorPath is where the requests begin that a front gives to a server that takes descriptors, on NginxHost.
	DescriptorPath = "/handed/"
	// descriptorRequests are made in the scene, half of them over IPv6.
	descriptorRequests = 20
	descriptorTime     = 10 * time.Second
)

// descriptorFront is a front that can give connections to a server that takes descriptors at a UNIX socket, as of its next start.
type descriptorFront interface {
	Front
	giveTo(socket string)
}

// descriptorServer is a server that takes descriptors: each with one message, which says whose connection it is. It answers every request with the
// client's address.
type descriptorServer struct {
	ln    *net.UnixListener
	group sync.WaitGroup
	// taken counts connections.
	taken atomic.Int64

	mu   sync.Mutex
	errs []error
}

// serveDescriptors listens at a path until close.
func serveDescriptors(path string) (*descriptorServer, error) {
	ln, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		return nil, err
	}
	s := &descriptorServer{ln: ln}
	s.group.Go(func() {
		for {
			c, err := ln.AcceptUnix()
			if err != nil {
				return
			}
			s.group.Go(func() {
				if err := s.serve(c); err != nil {
					s.mu.Lock()
					s.errs = append(s.errs, err)
					s.mu.Unlock()
				}
			})
		}
	})
	return s, nil
}

// close ends it, and says what has failed.
func (s *descriptorServer) close() error {
	err := s.ln.Close()
	s.group.Wait()
	return errors.Join(append(s.errs, err)...)
}

func (s *descriptorServer) serve(c *net.UnixConn) error {
	defer c.Close() //nolint:errcheck // read in whole
	conn, client, err := receiveConnection(c)
	if errors.Is(err, io.EOF) {
		return nil // the agent has changed its mind
	}
	if err != nil {
		return fmt.Errorf("a descriptor: %w", err)
	}
	defer conn.Close() //nolint:errcheck // the client checks what came
	s.taken.Add(1)
	if err := conn.SetDeadline(time.Now().Add(descriptorTime)); err != nil {
		return err
	}
	request, err := http.ReadRequest(bufio.NewReader(conn))
	if err != nil {
		return fmt.Errorf("a request of %s: %w", client, err)
	}
	body := conn.RemoteAddr().String()
	if body != client {
		return fmt.Errorf("the connection of %s came with the line of %s", body, client)
	}
	answer := http.Response{
		StatusCode: http.StatusOK, ProtoMajor: 1, ProtoMinor: 1, Request: request, Close: true,
		ContentLength: int64(len(body)), Body: io.NopCloser(strings.NewReader(body)),
	}
	return answer.Write(conn)
}

// receiveConnection receives a connection, and the client's address that comes with it.
func receiveConnection(c *net.UnixConn) (net.Conn, string, error) {
	if err := c.SetDeadline(time.Now().Add(descriptorTime)); err != nil {
		return nil, "", err
	}
	text, oob := make([]byte, 256), make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := c.ReadMsgUnix(text, oob)
	if err != nil {
		return nil, "", err
	}
	if n == 0 {
		return nil, "", io.EOF
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(messages) != 1 {
		return nil, "", fmt.Errorf("%d control messages with %q: %w", len(messages), text[:n], err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return nil, "", fmt.Errorf("descriptors %v with %q: %w", fds, text[:n], err)
	}
	file := os.NewFile(uintptr(fds[0]), "handed over")
	defer file.Close() //nolint:errcheck // FileConn has one of its own
	conn, err := net.FileConn(file)
	if err != nil {
		return nil, "", err
	}
	client, _, _ := strings.Cut(string(text[:n]), " ")
	return conn, client, nil
}

// descriptors has clients ask the server that takes descriptors, each request on a connection of its own. The server must see the client's own
// address, and each connection once.
func (s *dispatch) descriptors(ctx context.Context) error {
	front, ok := s.cfg.Front.(descriptorFront)
	if !ok {
		return nil
	}
	failed := 0
	for i := range descriptorRequests {
		if err := s.askDescriptor(ctx, front, i%2 == 1); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if failed++; failed == 1 {
				s.say("a connection that is given as a descriptor: %v", err)
			}
		}
	}
	s.result.DescriptorRequests = int(s.given.taken.Load())
	s.say("%d requests to a server that takes descriptors", s.result.DescriptorRequests)
	s.bad(failed, "%d of %d requests to a server that takes descriptors failed", failed, descriptorRequests)
	if n := s.result.DescriptorRequests; failed == 0 && n != descriptorRequests {
		s.bad(1, "%d connections came as descriptors, of %d", n, descriptorRequests)
	}
	return nil
}

func (s *dispatch) askDescriptor(ctx context.Context, front Front, v6 bool) error {
	ctx, cancel := context.WithTimeout(ctx, descriptorTime)
	defer cancel()
	target, err := front.Target(s.farm, Files, v6)
	if err != nil {
		return err
	}
	conn, err := s.farm.Client().Dial(ctx, "tcp", target.String())
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // read in whole
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	if _, err := fmt.Fprintf(conn, "GET %swho HTTP/1.1\r\nHost: %s\r\n\r\n", DescriptorPath, ShopName); err != nil {
		return err
	}
	answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return err
	}
	defer answer.Body.Close() //nolint:errcheck // read in whole
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		return err
	}
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", answer.Status, body)
	}
	return same(string(body), conn.LocalAddr().String())
}
