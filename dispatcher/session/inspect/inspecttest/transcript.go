// SPDX-License-Identifier: Apache-2.0

// Package inspecttest plays transcripts of signalling through an inspector's parsers and its pair. A transcript has lines
//
//	# a comment
//	flow tcp 192.0.2.7:40001 203.0.113.10:554    the flow of what follows; udp: each message is one datagram
//	> OPTIONS * RTSP/1.0                         a line that the client sends, CRLF behind it
//	>x 24000004 00ff                             bytes that the client sends
//	< RTSP/1.0 200 OK                            and the server
//	<x 160301
//	lost >                                       bytes of the client's stream are missing here
//	late <                                       what the server sends next is seen after the client's next message
//	closed                                       the flow has ended
//	= install udp …                              what came of it (written by -update)
//
// A message's end is where the direction changes, or a blank line of the transcript. "Content-Length: *" stands for the length of what follows
// the next empty line of the message.
package inspecttest

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/rehome-net/rehome/dispatcher/session"
	"github.com/rehome-net/rehome/dispatcher/session/inspect"
)

// Step is one thing that happens in a transcript.
type Step struct {
	Kind Kind
	Flow session.Key
	Side inspect.Side
	Data []byte
	// Line is where it stands: the number of the last line that belongs to it, from 0.
	Line int
	// Late: the other side's next message is seen before this one.
	Late bool
}

// Kind says what happens in a step.
type Kind uint8

// Kinds of steps.
const (
	Send Kind = iota
	Lost
	Closed
)

// Protocol numbers of IP.
const (
	protoTCP = 6
	protoUDP = 17
)

// Read returns a transcript's lines without what came of them, and its steps.
func Read(text string) (lines []string, steps []Step, err error) {
	var flow session.Key
	var message *Step
	late := map[inspect.Side]bool{}
	for _, line := range strings.Split(strings.TrimSuffix(text, "\n"), "\n") {
		if strings.HasPrefix(line, "=") {
			continue
		}
		n := len(lines)
		lines = append(lines, line)
		fail := func(err error) error { return fmt.Errorf("line %d: %q: %w", n+1, line, err) }
		side := inspect.Client
		verb, rest, _ := strings.Cut(line, " ")
		switch verb {
		case "<", "<x":
			side = inspect.Server
			fallthrough
		case ">", ">x":
			data := []byte(rest + "\r\n")
			if len(verb) == 2 {
				if data, err = hex.DecodeString(strings.ReplaceAll(rest, " ", "")); err != nil {
					return nil, nil, fail(err)
				}
			}
			if message == nil || message.Side != side {
				steps = append(steps, Step{Kind: Send, Flow: flow, Side: side, Late: late[side]})
				message = &steps[len(steps)-1]
				late[side] = false
			}
			message.Data = append(message.Data, data...)
			message.Line = n
			continue
		case "", "#":
		case "flow":
			if flow, err = parseFlow(strings.Fields(rest)); err != nil {
				return nil, nil, fail(err)
			}
		case "late", "lost":
			if rest == "<" {
				side = inspect.Server
			}
			if verb == "late" {
				late[side] = true
			} else {
				steps = append(steps, Step{Kind: Lost, Flow: flow, Side: side, Line: n})
			}
		case "closed":
			steps = append(steps, Step{Kind: Closed, Flow: flow, Line: n})
		default:
			return nil, nil, fail(fmt.Errorf("no such verb"))
		}
		message = nil
	}
	for i := range steps {
		steps[i].Data = fillLength(steps[i].Data)
	}
	return lines, steps, nil
}

// fillLength puts numbers in the place of the lengths that a message leaves out.
func fillLength(b []byte) []byte {
	before, after, found := bytes.Cut(b, []byte(": *\r\n"))
	if !found {
		return b
	}
	_, content, _ := bytes.Cut(after, []byte("\r\n\r\n"))
	if bytes.HasPrefix(after, []byte("\r\n")) {
		content = after[2:]
	}
	out := append([]byte{}, before...)
	out = append(out, ": "+strconv.Itoa(len(content))+"\r\n"...)
	return append(out, after...)
}

func parseFlow(words []string) (k session.Key, err error) {
	if len(words) != 3 {
		return k, fmt.Errorf("want a protocol and two addresses")
	}
	k.Protocol = protoTCP
	if words[0] == "udp" {
		k.Protocol = protoUDP
	}
	if k.Client, err = netip.ParseAddrPort(words[1]); err != nil {
		return k, err
	}
	k.Server, err = netip.ParseAddrPort(words[2])
	return k, err
}
