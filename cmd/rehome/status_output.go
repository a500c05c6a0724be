// SPDX-License-Identifier: Apache-2.0

package main

import (
	"time"

	"github.com/rehome-net/rehome/agent/api"
)

// What "rehome status" prints in JSON. protojson would write numbers of 64 bits as strings.
type (
	agentOutput struct {
		Status agentStatus `json:"status"`
		// Flows is missing unless they were asked for.
		Flows *[]flowStatus `json:"flows,omitempty"`
	}
	agentStatus struct {
		Host     string `json:"host"`
		Version  string `json:"version"`
		Draining bool   `json:"draining"`
		// Failure is when the host will fail, in RFC 3339; missing unless that was announced.
		Failure    string            `json:"failure,omitempty"`
		Services   []agentService    `json:"services"`
		Migrations []migrationStatus `json:"migrations"`
		Peers      []peerStatus      `json:"peers"`
		Counters   agentCounters     `json:"counters"`
	}
	agentService struct {
		Name         string   `json:"name"`
		Address      string   `json:"address"`
		Entry        string   `json:"entry"`
		Applications uint32   `json:"applications"`
		Servers      []string `json:"servers"`
	}
	migrationStatus struct {
		ID        uint64 `json:"id"`
		Flow      string `json:"flow"`
		Role      string `json:"role"`
		Peer      string `json:"peer"`
		State     string `json:"state"`
		AgeMicros int64  `json:"ageMicros"`
	}
	peerStatus struct {
		Name      string `json:"name"`
		Address   string `json:"address"`
		Connected bool   `json:"connected"`
		MAC       string `json:"mac"`
		Error     string `json:"error"`
	}
	agentCounters struct {
		MovedOut       uint64 `json:"movedOut"`
		MovedIn        uint64 `json:"movedIn"`
		Resumed        uint64 `json:"resumed"`
		Refused        uint64 `json:"refused"`
		Lost           uint64 `json:"lost"`
		Recovered      uint64 `json:"recovered"`
		PacketsHeld    uint64 `json:"packetsHeld"`
		PacketsDropped uint64 `json:"packetsDropped"`
	}
	flowStatus struct {
		Flow      string `json:"flow"`
		Service   string `json:"service"`
		Epoch     uint32 `json:"epoch"`
		AgeMicros int64  `json:"ageMicros"`
		Movable   bool   `json:"movable"`
	}
)

func agentOutputOf(r *api.StatusResponse, list []*api.Flow, flows bool) agentOutput {
	out := agentOutput{Status: agentStatusOf(r)}
	if flows {
		all := make([]flowStatus, 0, len(list))
		for _, f := range list {
			all = append(all, flowStatus{
				Flow: f.GetFlow(), Service: f.GetService(), Epoch: f.GetEpoch(), AgeMicros: f.GetAgeMicros(), Movable: f.GetMovable(),
			})
		}
		out.Flows = &all
	}
	return out
}

func agentStatusOf(r *api.StatusResponse) agentStatus {
	n := r.GetCounters()
	st := agentStatus{
		Host: r.GetHost(), Version: r.GetVersion(), Draining: r.GetDraining(),
		Services: []agentService{}, Migrations: []migrationStatus{}, Peers: []peerStatus{},
		Counters: agentCounters{
			MovedOut: n.GetMovedOut(), MovedIn: n.GetMovedIn(), Resumed: n.GetResumed(), Refused: n.GetRefused(), Lost: n.GetLost(),
			Recovered: n.GetRecovered(), PacketsHeld: n.GetPacketsHeld(), PacketsDropped: n.GetPacketsDropped(),
		},
	}
	if at := r.GetFailureUnixMillis(); at != 0 {
		st.Failure = time.UnixMilli(at).UTC().Format(time.RFC3339)
	}
	for _, s := range r.GetServices() {
		st.Services = append(st.Services, agentService{
			Name: s.GetName(), Address: s.GetAddress(), Entry: s.GetEntry(), Applications: s.GetApplications(),
			Servers: append([]string{}, s.GetServers()...),
		})
	}
	for _, m := range r.GetMigrations() {
		st.Migrations = append(st.Migrations, migrationStatus{
			ID: m.GetId(), Flow: m.GetFlow(), Role: m.GetRole(), Peer: m.GetPeer(), State: m.GetState(), AgeMicros: m.GetAgeMicros(),
		})
	}
	for _, p := range r.GetPeers() {
		st.Peers = append(st.Peers, peerStatus{
			Name: p.GetName(), Address: p.GetAddress(), Connected: p.GetConnected(), MAC: p.GetMac(), Error: p.GetError(),
		})
	}
	return st
}
