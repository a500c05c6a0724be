// SPDX-License-Identifier: Apache-2.0

// Package simulation is a model of a cluster under more load than it can bear, by which the engines of admission, forecast and balance
// are compared. It runs the engines themselves, not models of them, as the dispatcher connects them; it is a discrete-event
// simulation, and the same Config always gives the same Result. Nothing in the daemons imports it.
//
//	result, err := simulation.Run(simulation.Config{Seed: 1, Sessions: 100_000, Admission: admission.Config{Kind: admission.SA2C}})
//	result.CompletedPerSecond()
//
// # The model
//
//   - Sessions come by a Poisson process, Config.Offered times as many as the servers can complete.
//   - A session is a number of requests (geometrically distributed), one after the other, with time to think between them
//     (exponentially distributed). A request stands for a flow of the session, or a message on one. A session's demands and
//     thoughts depend on the seed and its number alone: every policy meets the same sessions.
//   - A session stays with the server that balance chose for its first request (SARA 17).
//   - A server serves one request at a time, in the order in which they came, each for an exponentially distributed time. Its queue
//     has no bound.
//   - A client waits for Config.Patience for the answer to a request. Then the session is lost, and all work on it was for nothing. The
//     server does not notice, and serves the request when its turn comes (unless Config.Notices).
//   - Admission refuses the first request of a session with the probability New: the session goes elsewhere. It refuses each
//     later request with the probability Established: the client sends it again after Config.RetryAfter, and after twice
//     that, while its patience lasts; then the session is lost.
//   - Each server reports a load every Config.Report: 0.8 times the share of the time in which it was busy, plus 0.2 times the
//     share of a client's patience that a new request would have to wait. 0.8 is thus a busy server without a queue, 1 is one where
//     nobody is served in time.
//   - Reports go through forecast; admission and balance see eq. 8's value (SARA 16). The dispatcher's own load is 0.
//
// # What it leaves out
//
// The network, loss of reports, what it costs to refuse (next to nothing in BPF, little for a 503), and sessions that need
// several servers. Users who come again after a refusal are left out unless Config.NewRetries says how often. A server that
// serves many requests at a time, each slower, would lose sessions in much the same way.
package simulation
