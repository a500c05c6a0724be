// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"time"

	"github.com/rehome-net/rehome/agent"
	"github.com/rehome-net/rehome/agent/api"
)

// processResult is one process in the output.
type processResult struct {
	Name string `json:"name"`
	// PID is its number before, NewPID that at the target, as the host there numbers it.
	PID          int32  `json:"pid"`
	NewPID       int32  `json:"newPid,omitempty"`
	To           string `json:"to"`
	Outcome      string `json:"outcome"`
	Error        string `json:"error,omitempty"`
	Processes    uint32 `json:"processes"`
	Connections  uint32 `json:"connections"`
	FreezeMicros int64  `json:"freezeMicros"`
	DumpMicros   int64  `json:"dumpMicros"`
	TotalMicros  int64  `json:"totalMicros"`
	HeldPackets  uint32 `json:"heldPackets"`
	ImageBytes   uint64 `json:"imageBytes"`
	LazyBytes    uint64 `json:"lazyBytes,omitempty"`
}

// process takes in the end of a process's move.
func (p *progress) process(m *api.ProcessMoved) {
	r := processResult{
		Name: m.GetName(), PID: m.GetPid(), NewPID: m.GetNewPid(), To: m.GetTo(), Outcome: m.GetOutcome(), Error: m.GetError(),
		Processes: m.GetProcesses(), Connections: m.GetConnections(), FreezeMicros: m.GetFreezeMicros(), DumpMicros: m.GetDumpMicros(),
		TotalMicros: m.GetTotalMicros(), HeldPackets: m.GetHeldPackets(), ImageBytes: m.GetImageBytes(),
		LazyBytes: m.GetLazyBytes(),
	}
	p.processes = append(p.processes, r)
	switch {
	case p.json:
	case r.Outcome != agent.OutcomeMoved:
		fmt.Fprintf(p.log, "%s (process %d)  %s: %s\n", r.Name, r.PID, inWords(r.Outcome), r.Error)
	default:
		fmt.Fprintf(p.out, "%s (process %d)  moved to %s as process %d  %d processes, %d connections, %d bytes  freeze %v  total %v  held %d packets\n",
			r.Name, r.PID, r.To, r.NewPID, r.Processes, r.Connections, r.ImageBytes, inMillis(r.FreezeMicros), inMillis(r.TotalMicros), r.HeldPackets)
	}
}

func inMillis(n int64) time.Duration {
	return (time.Duration(n) * time.Microsecond).Round(100 * time.Microsecond)
}
