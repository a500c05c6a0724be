// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"

	"github.com/rehome-net/rehome/handoff/migration"
	"github.com/rehome-net/rehome/handoff/wire"
	"github.com/rehome-net/rehome/tcprepair"
)

// Reasons why an agent does not move a connection.
var (
	errStopping  = errors.New("the agent is stopping")
	errAborted   = errors.New("aborted by the operator")
	errMoving    = errors.New("the connection is being moved already")
	errNoFlow    = errors.New("no application on this host that can give connections away has this one: it has ended, or its server is one that nobody has changed")
	errNotServed = errors.New("not a connection of a configured service: add its address to services")
	errSelf      = errors.New("the connection is on this host already")
	errTimeout   = errors.New("the time given for everything was over before its turn came")
	errLate      = errors.New("unsent data was lost with the agent that had restored the connection")
	errNoTarget  = errors.New("no other server takes it")

	errUnfinished   = errors.New("the agent ended before the move was over: the next one takes up what is left")
	errNoPeer       = errors.New("no peer of this host any more")
	errOtherAddress = errors.New("the peer has another address now")
)

// whoApplication names the application in a refusal.
const whoApplication = "application"

// codeOf returns the code that tells a peer about err.
func codeOf(err error) wire.Code {
	var r *wire.RefusedError
	switch {
	case err == nil:
		return wire.CodeUnspecified
	case errors.As(err, &r):
		return r.Code
	case errors.Is(err, migration.ErrTimeout):
		return wire.CodeTimeout
	case errors.Is(err, migration.ErrNotOwner), errors.Is(err, migration.ErrOwner):
		return wire.CodeEpoch
	case errors.Is(err, migration.ErrLeased), errors.Is(err, tcprepair.ErrInUse):
		return wire.CodeInUse
	case errors.Is(err, errNoFlow):
		return wire.CodeNoFlow
	}
	return wire.CodeFailed
}

// reasonOf returns what stands in a Refuse: the receiver knows who says it, and the code.
func reasonOf(err error) string {
	var r *wire.RefusedError
	if errors.As(err, &r) {
		return r.Reason
	}
	return err.Error()
}
