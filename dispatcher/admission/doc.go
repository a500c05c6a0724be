// SPDX-License-Identifier: Apache-2.0

// Package admission decides, from the load of a cluster, which share of its traffic is refused (SARA 12-16).
//
// A Policy is told loads and answers with a Decision, which holds until the next one:
//
//	policy, err := admission.New(admission.Config{})
//	decision := policy.Update(admission.Loads{Head: 0.3, Nodes: []float64{0.8, 0.7, 0.9}})
//	admission.ShareOf(decision.New)         // of the SYNs and first datagrams of new sessions
//	admission.ShareOf(decision.Established) // of the datagrams of established ones
//	decision.Next                           // ask again after this time
//
// Show it loads to come, not loads that were (SARA 16): package forecast's values of eq. 8, one for each node and one for the
// dispatcher's own host. A burst of short sessions is over by then, and does not cause mass rejection.
//
// # Policies
//
//   - SA2C (session-aware admission control) thins out new sessions from T1 on, takes none above T2, degrades established
//     ones above T3 only, and refuses everything at C. Repaired and Literal are two readings of a print that is garbled.
//   - Static refuses all new sessions above T2, and none below.
//   - Request is admission control that knows requests and no sessions: what SA2C does to new sessions, it does to everything.
//   - LeastConnections503 looks at no load: it bounds the connections of each backend (Decision.Connections). Whoever finds all backends
//     full gets 503, be it a session's first flow or its last.
//   - None refuses nothing.
//
// Package simulation compares them; docs/sara.md has the figures.
//
// # Thresholds are of x, not of load
//
// Eq. 1 takes (1-alpha) times the variance of the nodes' loads. Numbers from 0 to 1 have no more variance than mean*(1-mean) (Bhatia
// and Davis 2000), so for alpha < 1 the cluster's load is always less than the mean, and alpha times the mean when all nodes are equally
// loaded: with alpha = 0.9, ten nodes at 1 are a cluster at 0.9. Choose thresholds accordingly. The default T3 is above the default alpha: nodes
// alone do not degrade established sessions, only the head does, or loads above 1. Who wants it of nodes, too, sets alpha to 1, or C to alpha and the
// others to scale. A load that is 1 as soon as a processor is busy says nothing of how far above its limit a node is: with T3 below that, SA2C drops
// datagrams of sessions that could be served.
//
// The package has no clock, draws no random number, and starts no goroutine. A Policy is for one goroutine at a time.
package admission
