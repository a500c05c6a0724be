// SPDX-License-Identifier: Apache-2.0

package scenario_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/rehome-net/rehome/agent/api"
	"github.com/rehome-net/rehome/netns-lab/scenario"
	"github.com/rehome-net/rehome/tcprepair"
)

// killed ends the dispatcher as a crash would, with flows under way. What is in the kernel stays and leads them on.
func (w *withoutBPFRun) killed(t *testing.T) {
	const downloads = 20
	begun, dead := make(chan struct{}, downloads), make(chan struct{})
	var group sync.WaitGroup
	for range downloads {
		group.Go(func() {
			if err := w.download(begun, dead); err != nil {
				t.Error(err)
			}
		})
	}
	for range downloads {
		select {
		case <-begun:
		case <-time.After(20 * time.Second):
			t.Error("not all downloads have begun")
		}
	}
	if err := w.KillDispatcher(); err != nil {
		t.Fatal(err)
	}
	close(dead)
	group.Wait()
	if err := w.StartDispatcher(testContext(t, time.Minute)); err != nil {
		t.Fatal(err)
	}
	client, _ := w.dial(t, nftEchoPort)
	echoes(t, client, 3)
}

// download reads some, says so, and reads the rest when the dispatcher is dead.
func (w *withoutBPFRun) download(begun chan<- struct{}, dead <-chan struct{}) error {
	conn, err := w.Host(scenario.ClientHost).Dial(context.Background(), "tcp", w.Target(nftFilesPort, false).String())
	if err != nil {
		begun <- struct{}{}
		return err
	}
	defer conn.Close()
	err = errors.Join(conn.(*net.TCPConn).SetReadBuffer(64<<10), conn.SetDeadline(time.Now().Add(20*time.Second)))
	if err == nil {
		_, err = fmt.Fprintf(conn, "GET /noise HTTP/1.1\r\nHost: shop.example\r\n\r\n")
	}
	var resp *http.Response
	if err == nil {
		resp, err = http.ReadResponse(bufio.NewReaderSize(conn, 4<<10), nil)
	}
	begun <- struct{}{}
	<-dead
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	n, got := int64(0), make([]byte, 32<<10)
	for want := make([]byte, len(got)); ; {
		k, err := resp.Body.Read(got)
		if _, werr := w.noise.ReadAt(want[:k], n); k > 0 && (werr != nil && !errors.Is(werr, io.EOF) || string(got[:k]) != string(want[:k])) {
			return fmt.Errorf("other bytes after %d: %w", n, werr)
		}
		if n += int64(k); errors.Is(err, io.EOF) && n == w.noise.Size {
			return nil
		}
		if err != nil {
			return fmt.Errorf("download: %d bytes: %w", n, err)
		}
	}
}

// moves has one connection go from server to server, while its client goes on.
func (w *withoutBPFRun) moves(t *testing.T) {
	const moves = 40
	conn, flow := w.dial(t, nftEchoPort)
	echoes(t, conn, 1)
	w.awaitFlow(t, flow)
	at, err := w.Find(testContext(t, 10*time.Second), flow)
	if err != nil {
		t.Fatal(err)
	}
	stop, ended := make(chan struct{}), make(chan time.Duration, 1)
	go func() {
		var longest time.Duration
		for i := 0; ; i++ {
			select {
			case <-stop:
				ended <- longest
				return
			default:
			}
			begin := time.Now()
			echoes(t, conn, 1)
			longest = max(longest, time.Since(begin))
		}
	}()
	for range moves {
		to := nftHosts()[0]
		if to == at {
			to = nftHosts()[1]
		}
		if _, err := w.Move(testContext(t, 10*time.Second), at, flow, to); err != nil {
			t.Fatal(err)
		}
		at = to
	}
	close(stop)
	longest := <-ended
	echoes(t, conn, 10)
	t.Logf("the longest answer in %d moves took %v", moves, longest)
	if longest > 2*time.Second {
		t.Errorf("an answer took %v: more than a packet that was sent again", longest)
	}
}

// drain empties a backend of its connections.
func (w *withoutBPFRun) drain(t *testing.T) {
	const connections = 20
	var conns []net.Conn
	for range connections {
		conn, flow := w.dial(t, nftEchoPort)
		echoes(t, conn, 1)
		w.awaitFlow(t, flow)
		conns = append(conns, conn)
	}
	moved, sum, err := w.MoveAll(testContext(t, 20*time.Second), scenario.LinkedHost, &api.MoveRequest{Drain: true})
	if err != nil {
		t.Fatal(err)
	}
	if n := int(sum.GetMoved()); n != len(moved) || n < connections/4 {
		t.Errorf("%d of %d have moved", n, len(moved))
	}
	for _, c := range conns {
		echoes(t, c, 2)
	}
	left, err := w.Flows(testContext(t, 5*time.Second), scenario.LinkedHost)
	if err != nil || len(left) != 0 {
		t.Errorf("left on the drained host: %v, %v", left, err)
	}
}

func (w *withoutBPFRun) dial(t *testing.T, port uint16) (net.Conn, tcprepair.Flow) {
	t.Helper()
	to := w.Target(port, false)
	conn, err := w.Host(scenario.ClientHost).Dial(testContext(t, 10*time.Second), "tcp", to.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	local, err := addrOf(conn.LocalAddr())
	if err != nil {
		t.Fatal(err)
	}
	return conn, tcprepair.NewFlow(to, local)
}

// awaitFlow waits until an application has the connection.
func (w *withoutBPFRun) awaitFlow(t *testing.T, f tcprepair.Flow) {
	t.Helper()
	if _, err := w.Find(testContext(t, 10*time.Second), f); err != nil {
		t.Fatal(err)
	}
}

// echoes sends and gets the same back.
func echoes(t *testing.T, c net.Conn, n int) {
	t.Helper()
	for i := range n {
		sent := rampBytes(i, 2000)
		if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Error(err)
			return
		}
		_, err := c.Write(sent)
		if err == nil {
			err = same(c, sent)
		}
		if err != nil {
			t.Errorf("echo %d: %v", i, err)
			return
		}
	}
}
