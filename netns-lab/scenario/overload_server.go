// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"bufio"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/rehome-net/rehome/handoff"
	netnslab "github.com/rehome-net/rehome/netns-lab"
)

// queueService is the name under which the servers of Overload register.
const queueService = "queue"

// queueReport is how often a queueServer tells its load.
const queueReport = 50 * time.Millisecond

// queueServer answers HTTP requests on kept connections, each after the time that its queue says, and reports the queue's load as its own. It does
// not notice that a client has gone away before it answers, as servers mostly do not.
type queueServer struct {
	listener *handoff.Listener
	cancel   context.CancelFunc
	wg       sync.WaitGroup

	mu    sync.Mutex
	queue *queue
	load  occupancy
}

// startQueueServer starts one in a host. agent is the agent's socket; close ends it.
func startQueueServer(ctx context.Context, h *netnslab.Host, address, agent string, q *queue, patience time.Duration) (*queueServer, error) {
	s := &queueServer{queue: q, load: occupancy{patience: patience}}
	err := h.Do(func() (err error) {
		s.listener, err = handoff.Listen(ctx, "tcp", address, handoff.Config{
			Service: queueService, Agent: agent, Logger: slog.New(slog.DiscardHandler),
		})
		return err
	})
	if err != nil {
		return nil, err
	}
	ctx, s.cancel = context.WithCancel(context.WithoutCancel(ctx))
	s.wg.Go(func() { s.accept(ctx) })
	s.wg.Go(func() { s.report(ctx) })
	return s, nil
}

// close ends the server and all its connections.
func (s *queueServer) close() error {
	s.cancel()
	err := s.listener.Close()
	s.wg.Wait()
	return err
}

func (s *queueServer) accept(ctx context.Context) {
	for {
		c, err := s.listener.Accept()
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			continue // a client that went away
		}
		s.wg.Go(func() { s.serve(ctx, c) })
	}
}

// answerText is every answer's.
const answerText = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n"

func (s *queueServer) serve(ctx context.Context, c net.Conn) {
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer func() {
		stop()
		_ = c.Close()
	}()
	for in := bufio.NewReader(c); ; {
		if _, err := http.ReadRequest(in); err != nil {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Until(s.take())):
		}
		if _, err := io.WriteString(c, answerText); err != nil {
			return
		}
	}
}

// take takes a request, and returns when it will have been served.
func (s *queueServer) take() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.queue.take(time.Now())
}

// report tells the load until ctx ends.
func (s *queueServer) report(ctx context.Context) {
	tick := time.NewTicker(queueReport)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		s.mu.Lock()
		load := s.load.read(time.Now(), s.queue)
		s.mu.Unlock()
		s.listener.ReportLoad(load)
	}
}

// given returns how many requests it has been given.
func (s *queueServer) given() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return int(s.queue.given / s.queue.service)
}

// wait is how long a request would wait for a worker now.
func (s *queueServer) wait() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.queue.wait(time.Now())
}
