// SPDX-License-Identifier: Apache-2.0

package inspecttest

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/rehome-net/rehome/dispatcher/session"
	"github.com/rehome-net/rehome/dispatcher/session/inspect"
)

const flowLine = "flow udp 192.0.2.7:1 203.0.113.10:2"

func TestRead(t *testing.T) {
	lines, steps, err := Read(flowLine + "\n> a: *\n> \n> bcd\n= old\n<x 00 ff\nlate >\n> e\nlost <\nclosed\n\n# end\n")
	if err != nil {
		t.Fatal(err)
	}
	flow, err := parseFlow(strings.Fields(flowLine)[1:])
	if err != nil {
		t.Fatal(err)
	}
	want := []Step{
		{Kind: Send, Flow: flow, Side: inspect.Client, Data: []byte("a: 5\r\n\r\nbcd\r\n"), Line: 3},
		{Kind: Send, Flow: flow, Side: inspect.Server, Data: []byte{0, 0xff}, Line: 4},
		{Kind: Send, Flow: flow, Side: inspect.Client, Data: []byte("e\r\n"), Line: 6, Late: true},
		{Kind: Lost, Flow: flow, Side: inspect.Server, Line: 7},
		{Kind: Closed, Flow: flow, Line: 8},
	}
	if d := cmp.Diff(want, steps, Comparer()); d != "" {
		t.Errorf("steps (-want +got):\n%s", d)
	}
	if len(lines) != 11 || lines[4] != "<x 00 ff" {
		t.Errorf("lines %q", lines)
	}
}

func TestReadRefuses(t *testing.T) {
	for _, text := range []string{"flow udp 1 2", "flow udp", "flow tcp 192.0.2.7:1 x", ">x 0", "what"} {
		if _, _, err := Read(text); err == nil {
			t.Errorf("%q is read", text)
		}
	}
}

// parrot is an inspector whose every datagram is a half, and whose pair installs the same flow each time: Play must refuse it.
type parrot struct{ inspect.Parser }

func (parrot) Datagram([]byte) []inspect.Half {
	return []inspect.Half{{Protocol: inspect.FTP, Side: inspect.Client}}
}

type stubborn struct{ outcome inspect.Outcome }

func (s stubborn) Add(inspect.Half) inspect.Outcome   { return s.outcome }
func (s stubborn) Closed(session.Key) inspect.Outcome { return s.outcome }
func stub(o inspect.Outcome) (i Inspector) {
	i.NewParser = func(session.Key, inspect.Side) (inspect.Parser, error) { return parrot{}, nil }
	i.NewPair = func() (inspect.Pair, error) { return stubborn{o}, nil }
	return i
}

// TestPlayRefuses gives outcomes that contradict themselves.
func TestPlayRefuses(t *testing.T) {
	flow, err := parseFlow(strings.Fields(flowLine)[1:])
	if err != nil {
		t.Fatal(err)
	}
	a := inspect.AnnounceFTP(flow, 0, 5)
	open := session.Announcement{}
	for name, c := range map[string]struct {
		outcome inspect.Outcome
		ok      bool
	}{
		"nothing":            {inspect.Outcome{}, true},
		"there and back":     {inspect.Outcome{Install: nil, Ended: true}, true},
		"installed twice":    {inspect.Outcome{Install: a}, false},
		"withdrawn":          {inspect.Outcome{Withdraw: a}, false},
		"both ports open":    {inspect.Outcome{Install: []session.Announcement{open}}, false},
		"installed in a row": {inspect.Outcome{Install: append(a, a...)}, false},
	} {
		if _, err := Play(stub(c.outcome), flowLine+"\n> x\n< y\n"); (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}
