// SPDX-License-Identifier: Apache-2.0

package main

import (
	"time"

	"github.com/rehome-net/rehome/dispatcher/api"
)

// What the dispatcher's commands print in JSON. protojson would write numbers of 64 bits as strings.
type (
	dispatcherStatus struct {
		Host     string          `json:"host"`
		Version  string          `json:"version"`
		Loaded   time.Time       `json:"loaded"`
		Table    tableStatus     `json:"table"`
		Services []serviceStatus `json:"services"`
		Pools    []poolStatus    `json:"pools"`
	}
	tableStatus struct {
		Flows       uint64 `json:"flows"`
		MaxFlows    uint64 `json:"maxFlows"`
		Forwarded   uint64 `json:"forwardedPackets"`
		Full        uint64 `json:"droppedAsFull"`
		Unreachable uint64 `json:"unreachablePackets"`
		// How packets leave by the interfaces.
		Ways []wayStatus `json:"ways"`
	}
	wayStatus struct {
		Interface string `json:"interface"`
		// The other end of its veth pair has them at once; if not, Why says why.
		Shortcut bool   `json:"shortcut"`
		Why      string `json:"why,omitempty"`
	}
	serviceStatus struct {
		Name      string   `json:"name"`
		Mode      string   `json:"mode"`
		Addresses []string `json:"addresses"`
		Routes    uint32   `json:"routes"`
		Default   string   `json:"default"`
		Peeking   int64    `json:"peeking"`
		Active    int64    `json:"active"`
	}
	poolStatus struct {
		Name     string          `json:"name"`
		Delivery string          `json:"delivery"`
		Balance  string          `json:"balance"`
		Backends []backendStatus `json:"backends"`
	}
	backendStatus struct {
		Name             string `json:"name"`
		Host             string `json:"host"`
		Address          string `json:"address"`
		Node             uint32 `json:"node"`
		State            string `json:"state"`
		Weight           uint32 `json:"weight"`
		ConfiguredWeight uint32 `json:"configuredWeight"`
		Drained          bool   `json:"drained"`
		Draining         bool   `json:"draining"`
		SlowStartLeft    int64  `json:"slowStartLeftMillis,omitempty"`
		Active           int64  `json:"active"`
		Health           string `json:"health,omitempty"`
		HealthError      string `json:"healthError,omitempty"`
		Unable           string `json:"unable,omitempty"`
	}
	reloadResult struct {
		Services uint32 `json:"services"`
		Pools    uint32 `json:"pools"`
		Routes   uint32 `json:"routes"`
		Micros   int64  `json:"micros"`
	}
)

func dispatcherStatusOf(r *api.StatusResponse) dispatcherStatus {
	st := dispatcherStatus{
		Host: r.GetHost(), Version: r.GetVersion(), Loaded: time.Unix(r.GetLoaded(), 0).UTC(),
		Table: tableStatus{
			Flows: r.GetTable().GetFlows(), MaxFlows: r.GetTable().GetMaxFlows(), Forwarded: r.GetTable().GetForwarded(),
			Full: r.GetTable().GetFull(), Unreachable: r.GetTable().GetUnreachable(), Ways: []wayStatus{},
		},
		Services: []serviceStatus{}, Pools: poolStatuses(r.GetPools()),
	}
	for _, w := range r.GetTable().GetWays() {
		st.Table.Ways = append(st.Table.Ways, wayStatus{Interface: w.GetInterface(), Shortcut: w.GetShortcut(), Why: w.GetWhy()})
	}
	for _, s := range r.GetServices() {
		st.Services = append(st.Services, serviceStatus{
			Name: s.GetName(), Mode: s.GetMode(), Addresses: s.GetAddresses(), Routes: s.GetRoutes(), Default: s.GetDefaultPool(),
			Peeking: s.GetPeeking(), Active: s.GetActive(),
		})
	}
	return st
}

func poolStatuses(list []*api.Pool) []poolStatus {
	pools := []poolStatus{}
	for _, p := range list {
		pool := poolStatus{Name: p.GetName(), Delivery: p.GetDelivery(), Balance: p.GetBalance(), Backends: []backendStatus{}}
		for _, b := range p.GetBackends() {
			pool.Backends = append(pool.Backends, backendStatus{
				Name: b.GetName(), Host: b.GetHost(), Address: b.GetAddress(), Node: b.GetNode(), State: b.GetState(),
				Weight: b.GetWeight(), ConfiguredWeight: b.GetConfiguredWeight(), Drained: b.GetDrained(),
				Draining: b.GetDraining(), SlowStartLeft: b.GetSlowStartLeftMillis(), Active: b.GetActive(), Health: b.GetHealth(), HealthError: b.GetHealthError(),
				Unable: b.GetUnable(),
			})
		}
		pools = append(pools, pool)
	}
	return pools
}
