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
	return inspect.NewEncoder(p, flow, false)
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
