// SPDX-License-Identifier: Apache-2.0

package handoff

import "net"

// phase is where a connection stands between this process and the agent.
//
//	            accept                      pause                        exported
//	              │                 ┌────────────────────┐          ┌────────────────┐
//	              ▼                 │                    ▼          │                ▼
//	Import     serving ─────────────┘                exporting ─────┘            exported ──── migrated ──► (migrated)
//	   │        ▲  ▲ │  ◄───────────── resume ───────────┘ │                      │  │ │
//	   ▼        │  │ │                                     │                      │  │ └────── abandon ───► (abandoned)
//	importing ──┘  │ └───────────────── close ──► (closed) ◄─── close ────────────│──┘ close      ▲
//	   │ activate  └──────────────────────────────────────────────── resume ──────┘   ▼           │
//	   │                                             (closed) ◄───── resume ──── closing ─────────┘
//	   └── withdraw, close ► (closed)                                               └── migrated ► (migrated)
//
// Calls pass in serving only. In exporting and exported they are parked; in every other phase they return the phase's
// error. From exported on the socket is the agent's: only its answer, or giving up, ends that phase. The application's
// Close there becomes closing and is carried out when the connection turns out to have stayed.
type phase uint8

const (
	importing phase = iota
	serving
	exporting
	exported
	closing
	migrated
	closed
	abandoned
)

// event is what changes a connection's phase.
type event uint8

const (
	// eventPause stops the calls so that the exporter can be asked.
	eventPause event = iota
	// eventResume lets them go on: nothing was sent to the agent, or it answered Resume.
	eventResume
	// eventExported gives the socket to the agent.
	eventExported
	// eventMigrated is the agent's: the connection is at its new host.
	eventMigrated
	// eventActivate is the agent's: the imported connection is live.
	eventActivate
	// eventWithdraw is the agent's: the connection does not come after all.
	eventWithdraw
	// eventAbandon says that no agent came to finish the move.
	eventAbandon
	// eventClose is the application's Close.
	eventClose
)

// next returns the phase that follows e, or false when e means nothing in phase p.
func (p phase) next(e event) (phase, bool) {
	switch {
	case p == importing && e == eventActivate:
		return serving, true
	case p == importing && (e == eventWithdraw || e == eventClose):
		return closed, true
	case p == serving && e == eventPause:
		return exporting, true
	case p == exporting && e == eventExported:
		return exported, true
	case (p == exporting || p == exported) && e == eventResume:
		return serving, true
	case (p == serving || p == exporting) && e == eventClose:
		return closed, true
	case p == exported && e == eventClose:
		return closing, true
	case p == closing && e == eventResume:
		return closed, true
	case (p == exported || p == closing) && e == eventMigrated:
		return migrated, true
	case (p == importing || p == exported || p == closing) && e == eventAbandon:
		return abandoned, true
	}
	return p, false
}

// parks reports whether calls wait in this phase.
func (p phase) parks() bool { return p == exporting || p == exported }

// err returns what calls return in this phase, nil where they pass or wait.
func (p phase) err() error {
	switch p {
	case importing:
		return ErrNotActive
	case migrated:
		return ErrMigrated
	case closed, closing:
		return net.ErrClosed
	case abandoned:
		return ErrAbandoned
	}
	return nil
}
