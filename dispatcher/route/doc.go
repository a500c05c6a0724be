// SPDX-License-Identifier: Apache-2.0

// Package route finds the pool that serves a connection, by what its first request shows: host, path, headers and
// cookies of HTTP, or the server name and protocols of a TLS ClientHello.
//
// Compile makes an immutable Table of a service's rules; Lookup asks it. A table has no locks and may be used by any
// number of goroutines; a reload makes a new one.
//
// # Which rule decides
//
// A rule fits when all its conditions hold; a rule without conditions fits everything. Of those that fit
//
//  1. the one with the most specific name decides: an exact name before a wildcard, a longer wildcard before a shorter
//     one, any wildcard before a rule without a name;
//  2. among those with the same name, the one with the longest path;
//  3. among those with the same path, the one that stands first in the list.
//
// So a rule for the exact host and the path / decides before a rule for *.example and a long path. A rule that can never
// decide, because one before it with the same name and path takes everything, is an error.
//
// # Conditions
//
//   - Host and SNI are names: letters' case, a port and a final dot do not matter. *.example fits every name below
//     example, however deep, and not example itself. A table uses either Host or SNI: no first request shows both.
//   - Path is a prefix that ends where a segment ends. /static fits /static and /static/a and not /staticx; /static/ fits
//     /static/ and what is below it and not /static. The query is no part of the path. Case matters.
//   - Header and Cookie hold when the value is exactly the given one; without a value, when there is such a header
//     or cookie at all. Case matters in values and in cookies' names, not in headers' names.
//   - ALPN holds when the client offers that protocol, in whatever place.
//
// The package knows no protocol: who has parsed the request fills in a Request, with a path that means the same to every
// server: unescaped, and without dot segments. What a parser cannot bring into that form it must refuse, or routes can be
// walked around.
package route
