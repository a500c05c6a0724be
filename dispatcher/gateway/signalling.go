// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"fmt"

	"github.com/rehome-net/rehome/dispatcher/session"
	"github.com/rehome-net/rehome/dispatcher/session/ftp"
	"github.com/rehome-net/rehome/dispatcher/session/inspect"
	"github.com/rehome-net/rehome/dispatcher/session/rtsp"
	"github.com/rehome-net/rehome/dispatcher/session/sip"
)

// Signalling is the Protocols of every mode: the servers' side of RTSP, SIP and FTP.
func Signalling(mode Mode, flow session.Key) Parser {
	p, err := newInspector(mode, flow)
	if err != nil {
		return nil
	}
	return &inspector{parser: p, datagrams: flow.Protocol == protocolUDP}
}

func newInspector(mode Mode, flow session.Key) (inspect.Parser, error) {
	switch mode {
	case ModeRTSP:
		return rtsp.NewParser(rtsp.Config{}, flow, inspect.Server)
	case ModeSIP:
		return sip.NewParser(sip.Config{}, flow, inspect.Server)
	case ModeFTP:
		return ftp.NewParser(ftp.Config{}, flow, inspect.Server)
	}
	return nil, fmt.Errorf("mode %q: no parser", mode)
}

// inspector is an inspect.Parser whose halves are encoded.
type inspector struct {
	parser    inspect.Parser
	datagrams bool
}

func (i *inspector) Parse(b []byte) (encoded [][]byte) {
	halves := i.parser.Datagram
	if !i.datagrams {
		halves = i.parser.Feed
	}
	for _, h := range halves(b) {
		// No parser makes a half that cannot be encoded; the dispatcher could not use one.
		if e, err := h.Append(nil); err == nil {
			encoded = append(encoded, e)
		}
	}
	return encoded
}

func (i *inspector) Gap()         { i.parser.Lost() }
func (i *inspector) Opaque() bool { return i.parser.Opaque() }
