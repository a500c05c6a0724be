// SPDX-License-Identifier: Apache-2.0

// Package migration decides how one live connection moves from a source host to a target host, and who owns it at every
// instant. It is pure: no socket, clock, goroutine or log. Events go in, actions come out, time is a parameter;
// package agent carries the actions out.
//
// There are three parties. The Source gives the connection away, the Target takes it over, and the Ledger stands at
// the flow's entry, the one host whose packet path decides where the client's packets go.
//
// # The rule that keeps one owner
//
// Before the source freezes anything it asks the entry for a lease of the flow: until the lease ends, and unless the
// source aborts it, the target may commit, once. The commit is a compare-and-set of owner and epoch at the
// entry, and the same write switches the path. From the moment the source has sent the frozen connection
//
//   - the target may thaw it only when the entry has answered that the target is the owner;
//   - the source may thaw it only when the target has promised not to commit (Refuse), or the entry has answered an
//     Abort with the source as owner.
//
// Commit and Abort meet at the entry, which does one of them; so at most one side thaws. A side that cannot learn the
// entry's answer until its deadline ends the connection with a RST instead of guessing.
//
// This differs from a commit that the source requests: the target asks by itself as soon as its application has
// imported, which takes a round trip out of the freeze; the lease gives the source the means to fence it off.
//
// The kernel keeps the rule, too, when an agent dies: the source's packet gate drops what a frozen socket might send,
// for longer than the lease lasts (see Config.Limit).
package migration
