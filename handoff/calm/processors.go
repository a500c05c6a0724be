// SPDX-License-Identifier: Apache-2.0

package calm

import (
	"os"
	"runtime"
)

// Processors has the process run one goroutine at a time while that is enough: nothing that arrives then wakes a second thread. It
// leaves a process alone whose operator has set GOMAXPROCS. One goroutine uses it; a nil Processors does nothing.
type Processors struct {
	many     int // what there was; zero: leave it alone
	parallel bool
}

// NewProcessors takes the process's processors over, of which it uses one.
func NewProcessors() *Processors {
	p := &Processors{}
	if os.Getenv("GOMAXPROCS") == "" {
		p.many = runtime.GOMAXPROCS(1)
	}
	return p
}

// SetParallel says whether there is work for all processors. A change stops the process for a moment.
func (p *Processors) SetParallel(on bool) {
	if p == nil || p.many == 0 || p.parallel == on {
		return
	}
	p.parallel = on
	n := 1
	if on {
		n = p.many
	}
	runtime.GOMAXPROCS(n)
}

// Close gives the processors back.
func (p *Processors) Close() { p.SetParallel(true) }
