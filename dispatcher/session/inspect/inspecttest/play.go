// SPDX-License-Identifier: Apache-2.0

package inspecttest

import (
	"fmt"
	"strings"

	"github.com/rehome-net/rehome/dispatcher/session"
	"github.com/rehome-net/rehome/dispatcher/session/inspect"
)

// Inspector is a protocol's package under test.
type Inspector struct {
	NewParser func(flow session.Key, side inspect.Side) (inspect.Parser, error)
	NewPair   func() (inspect.Pair, error)
}

// direction names one side of one flow.
type direction struct {
	flow session.Key
	side inspect.Side
}

// player plays the steps of one transcript.
type player struct {
	inspector Inspector
	parsers   map[direction]inspect.Parser
	pair      inspect.Pair
	announced map[session.Announcement]bool
}

// Play plays a transcript and returns it with what comes of it: a line for each half, each thing to do and each finding.
// It fails when the outcomes contradict each other, or when a half does not survive its encoding.
func Play(i Inspector, text string) (string, error) {
	lines, steps, err := Read(text)
	if err != nil {
		return "", err
	}
	pair, err := i.NewPair()
	if err != nil {
		return "", err
	}
	p := player{inspector: i, parsers: map[direction]inspect.Parser{}, pair: pair, announced: map[session.Announcement]bool{}}
	var out strings.Builder
	next := 0
	var late []inspect.Half
	for _, s := range steps {
		var report []string
		switch s.Kind {
		case Closed:
			r, err := p.outcome(pair.Closed(s.Flow))
			if err != nil {
				return "", err
			}
			report = append(report, r...)
		default:
			halves, err := p.step(s)
			if err != nil {
				return "", err
			}
			if s.Late {
				late = append(late, halves...)
				break
			}
			for _, h := range append(halves, late...) {
				o, err := p.outcome(pair.Add(h))
				if err != nil {
					return "", err
				}
				report = append(append(report, "half "+Describe(&h)), o...)
			}
			late = nil
		}
		for ; next <= s.Line; next++ {
			out.WriteString(lines[next] + "\n")
		}
		for _, r := range report {
			out.WriteString("= " + r + "\n")
		}
	}
	for ; next < len(lines); next++ {
		out.WriteString(lines[next] + "\n")
	}
	return out.String(), nil
}

// step feeds one step to its parser and returns the halves as they come out of the codec.
func (p *player) step(s Step) ([]inspect.Half, error) {
	d := direction{s.Flow, s.Side}
	parser := p.parsers[d]
	if parser == nil {
		var err error
		if parser, err = p.inspector.NewParser(s.Flow, s.Side); err != nil {
			return nil, err
		}
		p.parsers[d] = parser
	}
	var halves []inspect.Half
	switch {
	case s.Kind == Lost:
		parser.Lost()
	case s.Flow.Protocol == protoUDP:
		halves = parser.Datagram(s.Data)
	default:
		halves = parser.Feed(s.Data)
	}
	for i := range halves {
		b, err := halves[i].Append(nil)
		if err != nil {
			return nil, err
		}
		if halves[i], err = inspect.Decode(b); err != nil {
			return nil, err
		}
	}
	return halves, nil
}

// outcome describes what is to do, and holds that it makes sense.
func (p *player) outcome(o inspect.Outcome) (report []string, err error) {
	for _, a := range o.Withdraw {
		if !p.announced[a] {
			return nil, fmt.Errorf("%s is withdrawn and was not installed", flowText(a))
		}
		delete(p.announced, a)
		report = append(report, "withdraw "+flowText(a))
	}
	for _, a := range o.Install {
		switch {
		case p.announced[a]:
			return nil, fmt.Errorf("%s is installed twice", flowText(a))
		case a.Client.Port() == 0 && a.Server.Port() == 0:
			return nil, fmt.Errorf("%s leaves both ports open", flowText(a))
		}
		p.announced[a] = true
		report = append(report, "install "+flowText(a))
	}
	if o.Identity != "" {
		report = append(report, "identity "+o.Identity)
	}
	if o.Timeout != 0 {
		report = append(report, "timeout "+o.Timeout.String())
	}
	for _, f := range o.Findings {
		r := "found " + f.Reason.String()
		if f.Address.Addr().IsValid() {
			r += " " + f.Address.String()
		}
		report = append(report, r)
	}
	if o.Ended {
		report = append(report, "ended")
	}
	return report, nil
}
