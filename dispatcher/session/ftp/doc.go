// SPDX-License-Identifier: Apache-2.0

// Package ftp reads FTP's control connection (RFC 959, RFC 2428) for data connections (SARA 7): package inspect says how its Parser and
// Pair are used.
//
// A data connection is known by one side's word: the server's port from the answer to PASV or EPSV, the client's from PORT or EPRT. The
// other port is not known before the connection comes and is left open.
//
//   - PORT and EPRT that name another address than the control connection's client, or a well-known port, are
//     refused: an FTP bounce (RFC 2577).
//   - An answer that names another address than the virtual one is reported. Its port is announced at the virtual address, where
//     clients connect that ignore the address, as most do.
//   - ABOR withdraws with its answer; the end of the control connection withdraws everything.
//   - Lines in the middle of a reply are not read, Telnet commands are taken out.
//
// # What it does not do
//
// After AUTH TLS (RFC 4217) the connection is encrypted, and nothing can be announced; the parser and the pair say so. Then only
// keeping all of a client's flows on one server helps. CCC, which ends the encryption, is not noticed. Transfers between two servers are
// bounces, and refused. The default data port without PORT (RFC 959, 3.3) is not announced.
package ftp
