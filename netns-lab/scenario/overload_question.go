// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/net/dns/dnsmessage"
)

// question is what a session of datagrams queries. Its name says whose it is, so that servers can tell which sessions have come to them. Sent again it has
// another number of its try, and so is another question for everybody on the way.
type question struct {
	// run numbers the runs of a scene, session the sessions of a run, number the questions of a session.
	run, session, number int
	try                  int
}

// questionZone is where all names are.
const questionZone = "queue.example."

func (q question) name() string {
	return fmt.Sprintf("t%d.q%d.s%d.r%d.%s", q.try, q.number, q.session, q.run, questionZone)
}

var errQuestion = errors.New("no question of the scene's")

// parseQuestion reads a name, in the one spelling that name gives it.
func parseQuestion(name string) (q question, err error) {
	_, err = fmt.Sscanf(name, "t%d.q%d.s%d.r%d."+questionZone, &q.try, &q.number, &q.session, &q.run)
	if err != nil || q.name() != name {
		return question{}, fmt.Errorf("%q: %w", name, errQuestion)
	}
	return q, nil
}

// maxQuestion is how long a datagram with a question, or with an answer, may be.
const maxQuestion = 512 // RFC 1035, 4.2.1

// query is the datagram that asks for the name's address.
func (q question) query() ([]byte, error) {
	name, err := dnsmessage.NewName(q.name())
	if err != nil {
		return nil, err
	}
	m := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: uint16(q.number<<4 | q.try&15), RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: name, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}},
	}
	return m.Pack()
}

// openQuery reads a query, and returns what answers it.
func openQuery(datagram []byte, address netip.Addr) (question, []byte, error) {
	var m dnsmessage.Message
	if err := m.Unpack(datagram); err != nil {
		return question{}, nil, err
	}
	if len(m.Questions) != 1 || m.Response {
		return question{}, nil, fmt.Errorf("%d questions: %w", len(m.Questions), errQuestion)
	}
	q, err := parseQuestion(m.Questions[0].Name.String())
	if err != nil {
		return question{}, nil, err
	}
	answer := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: m.ID, Response: true, RecursionDesired: true, RecursionAvailable: true},
		Questions: m.Questions,
		Answers: []dnsmessage.Resource{{ // nobody may keep it: its time is 0
			Header: dnsmessage.ResourceHeader{Name: m.Questions[0].Name, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET},
			Body:   &dnsmessage.AResource{A: address.As4()},
		}},
	}
	packed, err := answer.Pack()
	return q, packed, err
}

// openAnswer reads an answer, and says to which question. An answer without an address is an error.
func openAnswer(datagram []byte) (question, error) {
	var m dnsmessage.Message
	if err := m.Unpack(datagram); err != nil {
		return question{}, err
	}
	if len(m.Questions) != 1 || !m.Response {
		return question{}, fmt.Errorf("%d questions: %w", len(m.Questions), errQuestion)
	}
	if m.RCode != dnsmessage.RCodeSuccess || len(m.Answers) == 0 {
		return question{}, fmt.Errorf("answered with %v and %d addresses", m.RCode, len(m.Answers))
	}
	return parseQuestion(m.Questions[0].Name.String())
}
