// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"cmp"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/rehome-net/rehome/handoff/sockops"
	"github.com/rehome-net/rehome/tcprepair"
)

func TestCensus(t *testing.T) {
	const established, timeWait = tcprepair.Established, stateTimeWait
	type list map[int]tcprepair.State
	c := newCensus()
	for _, step := range []struct {
		what string
		met  []int
		list list
		// over have ended for good, lingering are in TIME_WAIT.
		over, lingering []int
	}{
		{"two connections", nil, list{1: established, 2: established}, nil, nil},
		{"as before", nil, list{1: established, 2: tcprepair.CloseWait}, nil, nil},
		{"one is missing", nil, list{1: established}, nil, nil},
		{"it was overlooked", nil, list{1: established, 2: tcprepair.CloseWait}, nil, nil},
		{"it is missing again", nil, list{1: established}, nil, nil},
		{"and has ended", nil, list{1: established}, []int{2}, nil},
		{"the host closed the other one first", nil, list{1: timeWait}, nil, []int{1}},
		{"that is told once", nil, list{1: timeWait}, nil, nil},
		{"also when it is gone", nil, list{}, nil, nil},
		{"short ones", []int{3, 4}, list{4: timeWait, 5: timeWait}, nil, []int{4, 5}},
		{"one of them was seen by nobody", nil, list{4: timeWait, 5: timeWait}, []int{3}, nil},
		{"a port that is used again", nil, list{4: established, 5: timeWait}, nil, nil},
		{"is missing", nil, list{}, nil, nil},
		{"and ends", nil, list{}, []int{4}, nil},
		{"one that comes while the list is made", []int{3}, list{}, nil, nil},
		{"is on the next", nil, list{3: established}, nil, nil},
		{"one that is missing", nil, list{}, nil, nil},
		{"and whose port is used again", []int{3}, list{}, nil, nil},
		{"ends later", nil, list{}, []int{3}, nil},
		{"nothing", nil, list{}, nil, nil},
	} {
		for _, f := range step.met {
			c.meet(testFlow(f))
		}
		var sockets []socketState
		for f, s := range step.list {
			sockets = append(sockets, socketState{testFlow(f), s})
		}
		var over, lingering []int
		for _, e := range c.take(sockets) {
			number := slices.IndexFunc([]int{0, 1, 2, 3, 4, 5}, func(i int) bool { return testFlow(i) == e.Flow })
			if e.Lingers() {
				lingering = append(lingering, number)
			} else {
				over = append(over, number)
			}
		}
		slices.Sort(over)
		slices.Sort(lingering)
		if diff := gocmp.Diff([][]int{step.over, step.lingering}, [][]int{over, lingering}); diff != "" {
			t.Errorf("%s: %s", step.what, diff)
		}
	}
}

// TestPoll sees what ends of the services, whichever they are at the time.
func TestPoll(t *testing.T) {
	lists := [][]socketState{
		{{testFlow(1), tcprepair.Established}, {testFlow(2), tcprepair.Established}},
		{{testFlow(2), tcprepair.Established}},
		{{testFlow(2), tcprepair.Established}},
		{},
		{},
	}
	p := newPoll([]netip.AddrPort{testFlow(1).Local}, func() ([]socketState, error) {
		if len(lists) == 0 {
			return nil, errors.New("no more")
		}
		l := lists[0]
		lists = lists[1:]
		return slices.Clone(l), nil
	})
	p.pause = time.Millisecond
	p.note(testFlow(3))
	for i, want := range [][]sockops.End{
		{{Flow: testFlow(3), From: tcprepair.LastAck}},
		{{Flow: testFlow(1), From: tcprepair.LastAck}},
		{{Flow: testFlow(2), From: tcprepair.LastAck}},
	} {
		got, err := p.Read(nil)
		p.pause = time.Millisecond
		slices.SortFunc(got, func(a, b sockops.End) int { return cmp.Compare(a.Flow.String(), b.Flow.String()) })
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("read %d: %v, %v, want %v", i, got, err, want)
		}
	}
	if _, err := p.Read(nil); err == nil {
		t.Error("a list that cannot be made is no error")
	}
	if err := errors.Join(p.SetServices(nil), p.Close(), p.Close()); err != nil {
		t.Error(err)
	}
	if _, err := p.Read(nil); !errors.Is(err, os.ErrClosed) {
		t.Errorf("when closed: %v", err)
	}
	lists = [][]socketState{{{testFlow(1), tcprepair.Established}}, {}, {}}
	for range 3 {
		if got, err := p.look(); err != nil || len(got) != 0 {
			t.Errorf("of no service: %v, %v", got, err)
		}
	}
	if n := p.Lost(); n != 0 {
		t.Errorf("%d lost", n)
	}
	var none *poll
	none.note(testFlow(1))
}

// TestConnections looks for connections of its own, in both versions of IP.
func TestConnections(t *testing.T) {
	for _, at := range []string{"127.0.0.1:0", "[::1]:0"} {
		ln, err := net.Listen("tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		client, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		server, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer server.Close()
		end := func(a net.Addr) netip.AddrPort { return netip.MustParseAddrPort(a.String()) }
		want := socketState{tcprepair.NewFlow(end(server.LocalAddr()), end(server.RemoteAddr())), tcprepair.Established}
		all, err := connections()
		if err != nil || !slices.Contains(all, want) {
			t.Errorf("%v is not among %d connections, %v", want, len(all), err)
		}
		for _, s := range all {
			if s.state == stateListen {
				t.Errorf("%v listens", s)
			}
		}
	}
	for _, b := range [][]byte{nil, make([]byte, socketAnswerSize-1), make([]byte, socketAnswerSize)} {
		if s, ok := parseConnection(b); ok {
			t.Errorf("%d bytes are %v", len(b), s)
		}
	}
}

func FuzzParseConnection(f *testing.F) {
	f.Add(make([]byte, socketAnswerSize))
	f.Add([]byte{2, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, ok := parseConnection(b); ok && !s.flow.IsValid() {
			t.Errorf("%x is %v", b, s)
		}
	})
}
