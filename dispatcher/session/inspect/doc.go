// SPDX-License-Identifier: Apache-2.0

// Package inspect has the shapes that the inspectors of signalling share (SARA 6 to 8): packages rtsp, sip and ftp read RTSP, SIP
// and FTP, and say which flows a session is going to have before their first packets come.
//
// Requests pass the dispatcher, answers do not: they go from the server straight to the client, through the default
// gateway. So each protocol has two parts. A Parser reads one direction of one signalling flow, wherever that direction can be seen, and
// makes halves of it:
//
//	dispatcher:  parser, err := rtsp.NewParser(rtsp.Config{}, flow, inspect.Client)
//	gateway:     parser, err := rtsp.NewParser(rtsp.Config{}, flow, inspect.Server)
//
//	for _, half := range parser.Feed(bytes) {
//		message, err := half.Append(nil)     // from the gateway to the dispatcher
//	}
//
// A Pair, one for each session, lives in the dispatcher. It takes the halves of both sides, in either order, and says what to do:
//
//	pair, err := rtsp.NewPair(rtsp.Config{})
//	half, err := inspect.Decode(message)     // or from the dispatcher's own parser
//	outcome := pair.Add(half)                // then withdraw, then install
//
// Only what the client sends comes by the dispatcher, media included: RTP of a SIP caller, receiver reports of an RTSP player, a
// data connection of FTP. So an announcement goes from the client to the virtual address. The client's address in it is always
// the one that its signalling comes from, never one that a message names: nobody can announce a flow for another.
//
// The packages are pure: no socket, clock, goroutine or log. Memory is bounded, and whatever bytes come, the worst
// that happens is that a flow is not announced. Limits are fields of each package's Config.
//
// # What the caller keeps
//
// A half names its flow and its side as its parser was told. A half that came over the network says what its sender wanted; the
// dispatcher checks that a gateway speaks for the server side only, and for flows whose service it serves.
//
// Announcements that no flow follows, and sessions whose end nobody saw, time out in the session table.
package inspect
