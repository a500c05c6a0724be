// SPDX-License-Identifier: Apache-2.0

// Package session knows which flows belong to one user's session, so that all of them reach the same server (SARA 3-11, 17).
//
// A Table has sessions, and each session has flows: signalling ones, on which the client asks; announced ones, which
// signalling has promised; and secondary ones, which are announced flows whose first packet has come. For a packet or a
// connection that the forwarder does not know, its owner asks the table in this order:
//
//	flow, actions, ok := table.Touch(now, key, nil)   // known, or the first packet of an announced flow: flow.Server has it
//	id, ok := table.Named("sip:" + callID)            // signalling that goes on from elsewhere: Join(now, id, key, nil)
//	server, ok := table.ServerOf(key.Client.Addr())   // a client who is here already: Open with that server
//	                                                  // else admission and balancing come, then Open
//	id, actions, err := table.Open(now, key, session.Terms{Server: server}, nil)
//
// What signalling says then becomes
//
//	actions, err = table.Announce(now, id, announcements, nil) // RTSP SETUP and its reply, SIP offer and answer, FTP PASV …
//	err = table.Name(id, "sip:"+callID)                        // other flows of the dialog find the session by it
//	err = table.SetTimeouts(id, timeouts)                      // the server has said how long it waits
//	actions, err = table.Withdraw(id, announcements, nil)      // TEARDOWN, BYE
//
// and what the hosts report becomes
//
//	actions, known := table.Seen(when, key, nil) // the forwarder has had packets of the flow
//	actions, ok := table.End(key, nil)           // an agent says that the connection is over
//	actions, err := table.Move(id, server, nil)  // load shedding: the whole session, signalling and media together
//	actions = table.Purge(now, 256, nil)         // often: what nobody has used for long goes
//
// # Actions
//
// The table forwards nothing. What the forwarder must do comes back as actions, appended to the slice that was passed;
// carry them out in order, and an announcement's before the message that announces is let through. No
// action comes together with an error.
//
// # Open ports
//
// An announced flow of which one port is open (0) is a pattern. A packet is looked up exactly, then with the client's port
// open, then with the server's; the first to fit decides. The first packet uses the pattern up: from then on the flow
// has its full key.
//
// # Time
//
// A flow that nothing was seen of for its timeout is inactive, and after twice the timeout it is overdue (SARA 11). But a
// session lives as a whole: as long as any of its flows was in use within twice that flow's timeout, all stay, so that
// signalling may be silent while media runs, and media while the user pauses. Timeouts.Apart is the exception. When there is no room
// left in a session, or its promise meets another session's, overdue flows give way although their session lives.
//
// # Bounds
//
// Flows are bounded in all, for one session and for one client; a client is an IPv4 address or an IPv6 /64. A flow counts for the
// client that opened its session, whatever addresses were announced. A flow and a session of its own take less than 200 bytes when the table is full, without
// a pointer for the garbage collector to follow, in memory of the table's own on large pages (package slab), which Free gives back. A table begins small,
// and grows while flows are added, each time by the flows of one shelf (see racks): nothing is rehashed or copied as
// a whole, and no call does work in proportion to the table. Digests have secret keys, and full keys are compared, so clients cannot choose collisions (SARA 10).
//
// The package has no clock, socket or goroutine. It parses no signalling: packages rtsp, sip and ftp do. A Table is not
// safe for concurrent use: one goroutine owns it. Calls that change nothing (Lookup, Session, ServerOf, ServerWith, Named, Flows, Scan, Stats) may run beside one another.
package session
