// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"time"

	netnslab "github.com/rehome-net/rehome/netns-lab"
	"github.com/rehome-net/rehome/tcprepair"
)

// wait is a time in which a client was waiting for its server.
type wait struct{ from, to time.Time }

// waitsOf returns a client's waits, as its network interface saw them: a download waits for the next data, an upload for
// the next acknowledgement, an interactive session from its line to the echo.
func waitsOf(client string, trace netnslab.Trace, f tcprepair.Flow) []wait {
	var waits []wait
	var since time.Time
	for _, s := range trace.Segments {
		switch {
		case client == "echo" && s.Src == f.Remote && s.Len > 0:
			since = s.Time
			continue
		case s.Src != f.Local, client != "upload" && s.Len == 0:
			continue
		}
		if !since.IsZero() {
			waits = append(waits, wait{from: since, to: s.Time})
		}
		since = s.Time
		if client == "echo" {
			since = time.Time{}
		}
	}
	return waits
}

// longestWait returns the longest of the waits that overlap the time from begin to end.
func longestWait(waits []wait, begin, end time.Time) time.Duration {
	var longest time.Duration
	for _, w := range waits {
		if w.to.Before(begin) || w.from.After(end) {
			continue
		}
		longest = max(longest, w.to.Sub(w.from))
	}
	return longest
}
