// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"github.com/rehome-net/rehome/handoff/reqsk"
	"github.com/rehome-net/rehome/tcprepair"
)

// needsBPF is why unmodified servers get no connections on a host without BPF.
const needsBPF = "unmodified servers need BPF, and gate.mode is nft here: use delivery linked or fd"

// injector returns what makes connections for servers that know nothing of rehome; it is opened when first needed, and a kernel
// that cannot do it is asked again with the next connection.
func (e *engine) injector() (*reqsk.Injector, error) {
	if e.inject == nil {
		in, err := reqsk.Open(reqsk.Config{Logger: e.log})
		if err != nil {
			return nil, err
		}
		e.inject = in
	}
	return e.inject, nil
}

// quickRequest is how long a request may be, in bytes, for every server's socket to have room for it.
const quickRequest = 16 << 10

// unmodified gives the connection to whoever listens at the service's address, through its accept queue.
type unmodified struct {
	e        *engine
	injector *reqsk.Injector
	snapshot *tcprepair.Snapshot
}

func (u *unmodified) prepare(s *tcprepair.Snapshot) error {
	u.snapshot = s
	return nil
}

// deliver injects; in the background when the request is so long that the server may have to read some of it first.
func (u *unmodified) deliver(done func(error)) {
	if len(u.snapshot.Received) <= quickRequest {
		done(u.injector.Inject(u.snapshot))
		return
	}
	go func() {
		err := u.injector.Inject(u.snapshot)
		u.e.post(func(*engine) { done(err) })
	}()
}

func (u *unmodified) discard() {}
