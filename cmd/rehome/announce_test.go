// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/rehome-net/rehome/agent/api"
)

func TestAnnounce(t *testing.T) {
	f := &fakeAgent{}
	at := f.serve(t)
	for _, tt := range []struct {
		args   []string
		code   int
		out    string
		micros int64
		cancel bool
	}{
		{[]string{"--in", "10m"}, 0, "2 dispatchers are told", 600_000_000, false},
		{[]string{"--in", "0s", "--output", "json"}, 0, `"failure": "2027-01-15T08:00:00Z"`, 0, false},
		{[]string{"--cancel"}, 0, "called off: 2 dispatchers", 0, true},
		{[]string{"--cancel", "--output", "json"}, 0, "{\n  \"dispatchers\": 2\n}", 0, true},
		{nil, exitUsage, "", 0, false},
		{[]string{"--in", "1m", "--cancel"}, exitUsage, "", 0, false},
		{[]string{"--in", "-1m"}, exitUsage, "", 0, false},
		{[]string{"--in", "soon"}, exitUsage, "", 0, false},
	} {
		f.announced = nil
		var out, errs bytes.Buffer
		code := run(t.Context(), append([]string{"announce", "--agent", at}, tt.args...), &out, &errs)
		if code != tt.code || !strings.Contains(out.String(), tt.out) {
			t.Errorf("%v: exit code %d, %q, %q; want %d, %q", tt.args, code, out.String(), errs.String(), tt.code, tt.out)
		}
		if (f.announced != nil) != (tt.code == 0) || f.announced.GetInMicros() != tt.micros || f.announced.GetCancel() != tt.cancel {
			t.Errorf("%v: the agent was asked %v", tt.args, f.announced)
		}
	}
}

// TestStatusFailure holds that an operator sees what has been announced.
func TestStatusFailure(t *testing.T) {
	when := time.Now().Add(time.Hour)
	st := &api.StatusResponse{Host: "web-1", FailureUnixMillis: when.UnixMilli()}
	var b bytes.Buffer
	if err := printStatus(&b, st, nil, false); err != nil {
		t.Fatal(err)
	}
	if want := "serving, fails at " + when.Format(time.DateTime); !strings.Contains(b.String(), want) {
		t.Errorf("%q does not stand in %q", want, b.String())
	}
	if got := agentStatusOf(st).Failure; got != when.UTC().Format(time.RFC3339) {
		t.Errorf("in JSON: %q", got)
	}
}
