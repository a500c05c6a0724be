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
// Commit and Abort meet at the entry, which does one of them; so at most one side thaws. A source that cannot learn the
// entry's answer until its deadline ends the connection with a RST instead of guessing. A target that cannot goes on
// asking (Config.Orphan), silently: when the answer was yes, nobody else can go on, and when it was no, nobody waits for it.
//
// This differs from a commit that the source requests: the target asks by itself as soon as its application has
// imported, which takes a round trip out of the freeze; the lease gives the source the means to fence it off.
//
// The kernel keeps the rule, too, when an agent dies: the source's packet gate drops what a frozen socket might send,
// for longer than the lease lasts (see Config.Limit).
//
// # What the caller must keep
//
// The machines are right only under these rules. What happens without the first and the third, the model in this package's
// tests shows (TestBrokenRules).
//
//   - The gate's hold outlives the agent. A frozen socket acknowledges what reaches it; were the target to commit
//     then, that data would be lost.
//   - A move has one id everywhere: with the target, the entry's lease and the application. It is random, so that no two
//     hosts and no two lives of an agent choose the same.
//   - An agent that takes up its predecessor's move aborts the lease of that id, in either role, before it believes an
//     answer. A question alone does not stop a Commit that is under way.
//   - The entry changes owner and epoch in one step, and they outlive its process; the Ledger need not.
//   - Frames do not outlive their connection: what a restarted agent or entry reads comes from a connection of its own. A
//     Refuse is a promise only on the connection that the offer went through.
//   - A connection that the entry first sees gets an epoch that no lease of an older one with the same addresses has.
//
// # Handing off
//
// A dispatcher that has accepted a connection gives it to a server with a Giver; the server's host takes it with a Taker. The dispatcher is
// the flow's entry itself, so there is no lease: an attempt may be granted the flow while it is under way, once. From then on
// only the server's host can give the flow back, with Refuse or by saying that the connection is not there. The flow table has the new owner
// with the grant, marked: the path opens when the Giver discards its socket, or when the dispatcher is dead. What this needs, and what happens
// without it, the tests' second model shows (TestBrokenHandoffs).
//
//   - The dispatcher holds the client's packets until the Giver discards its socket or the flow is its own again, so until limit and grace
//     are over. No connection can come to its end meanwhile, so one that is not at the server was never there.
//   - The grant of an attempt that is over is refused; an attempt of which nothing could be sent is Refused, not PeerLost.
//   - A host whose Taker has not finished answers the question when it has. Afterwards it answers what became of it, for longer than the
//     dispatcher asks: Over, above all, leaves nothing that could be found.
//   - A host that has answered Absent for an id which it did not know refuses a handoff of that id that comes later: a flow that was granted
//     at once is delivered without a question, and frames of two connections may be read in any order.
//   - A flow that cannot be taken back has a new owner, or is a new connection of the client's: the dispatcher drops its socket in silence
//     and goes on with no other server. Nor does it take such a flow out of the table.
package migration
