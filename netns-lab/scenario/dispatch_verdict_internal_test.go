// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestDispatchVerdict(t *testing.T) {
	all := []string{"linked", "fd", "unmodified"}
	handoffs := func() map[string]int64 { return map[string]int64{"linked": 1, "fd": 2, "unmodified": 3} }
	for _, tt := range []struct {
		name     string
		result   DispatchResult
		ok       bool
		problems []string
		missing  []string
	}{
		{"well", DispatchResult{Handoffs: handoffs(), Skipped: 1}, true, nil, nil},
		{"failed", DispatchResult{Handoffs: handoffs(), Failed: 1, Problems: []string{"said before"}}, false, []string{"said before"}, nil},
		{"relayed", DispatchResult{Handoffs: handoffs(), BytesRelayed: 7}, false, []string{"the front has passed on 7 bytes itself"}, nil},
		{
			"deliveries without a handoff",
			DispatchResult{Handoffs: map[string]int64{"linked": 1, "unmodified": 0}},
			false,
			[]string{"no connection was handed off by delivery fd", "no connection was handed off by delivery unmodified"},
			nil,
		},
		{
			"programs are missing",
			DispatchResult{Handoffs: handoffs(), Skipped: 3, Missing: []string{"redis-cli", "openssl", "redis-cli"}},
			false,
			[]string{"checks could not be made: install openssl, redis-cli"},
			[]string{"openssl", "redis-cli"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := tt.result
			r.judge(all)
			if r.OK != tt.ok {
				t.Errorf("ok is %t", r.OK)
			}
			if diff := cmp.Diff(tt.problems, r.Problems); diff != "" {
				t.Error(diff)
			}
			if diff := cmp.Diff(tt.missing, r.Missing); diff != "" {
				t.Error(diff)
			}
		})
	}
}
