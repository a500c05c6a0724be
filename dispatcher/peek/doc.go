// SPDX-License-Identifier: Apache-2.0

// Package peek reads the first bytes of a connection, which stay in the socket's receive queue, and says where it belongs:
// HTTP/1 and HTTP/2 with prior knowledge by the first request, TLS by the ClientHello, anything else by nothing. A PROXY
// protocol header may stand in front of any of them. It is pure: no socket, clock, goroutine or log. The caller peeks
// (MSG_PEEK) always from the connection's start, and parses what there is:
//
//	parser, err := peek.New(peek.Config{Mode: peek.HTTP})  // one per service
//	var progress peek.Progress                             // one per connection
//	for {
//		n := ...                                       // peek up to parser.Limit() bytes into buffer
//		key, err := parser.Parse(&progress, buffer[:n])
//		switch {
//		case err == nil:                               // choose a backend by key; refuse with key.Answer(peek.NoRoute)
//		case errors.Is(err, peek.ErrMore):             // wait until progress.Need() bytes are there (SO_RCVLOWAT)
//		case errors.As(err, &reject):                  // write reject.Answer(), count reject.Reason, close
//		}
//	}
//
// # What it costs
//
// Nothing of the buffer is kept between two calls, so one buffer serves all connections of a goroutine; a connection
// that waits costs its Progress, some fifty bytes. A byte is looked at a constant number of times however slowly
// the bytes come in. A Key has copies of what it names: it outlives the buffer.
//
// # What it promises
//
// A Key is what the server will see. Servers differ in how they read unusual requests, and a request that the dispatcher
// and the server read differently could reach a server past the routes. So what nginx and net/http are known to read
// differently, or what RFC 9112, 9113 or 8446 call malformed, is rejected: folded fields, lines ended by LF alone, white
// space before a colon, two Host fields, a Host that contradicts an absolute target, dot segments, an encoded slash.
// The answer does not depend on how the bytes were cut into pieces.
//
// # What it does not do
//
// It reads one request. A connection that was handed off is its server's: later requests of a kept connection
// are not looked at, whatever their host. Framing of the body (Content-Length, Transfer-Encoding) has no part in a
// route and is the server's business. TLS is not terminated, and of an Encrypted ClientHello only the outer name is seen.
// Time limits are the caller's.
package peek
