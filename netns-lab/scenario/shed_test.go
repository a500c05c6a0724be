// SPDX-License-Identifier: Apache-2.0

package scenario_test

import (
	"testing"
	"time"

	"github.com/rehome-net/rehome/netns-lab/scenario"
	"github.com/rehome-net/rehome/netns-lab/streamer"
)

// TestShed cools a small server down. Time is allowed generously: the machine may be busy.
func TestShed(t *testing.T) {
	lab := labName("shed")
	r, err := scenario.Shed(testContext(t, time.Minute), scenario.ShedConfig{
		Command: binary(t), Lab: lab, Capacity: 100, Sessions: -1, Limit: 15 * time.Second, LogLevel: "warn", Report: log{t},
	})
	if err != nil {
		t.Fatal(err)
	}
	checkGone(t, lab)
	// 95 connections, of which 25 at least must go.
	if !r.OK || r.Connections != 95 || r.Moved < 25 || r.Moved > 40 || r.ClientErrors != 0 || r.LoadBefore != 0.95 {
		t.Errorf("%+v", r)
	}
}

// TestShedSessions cools a small media server down, and drains it: sessions of gortsplib's client and of ffmpeg, that play and record.
func TestShedSessions(t *testing.T) {
	needPrograms(t, scenario.MediaPrograms()...)
	lab := labName("sh")
	r, err := scenario.ShedSessions(testContext(t, time.Minute), scenario.ShedConfig{
		Command: binary(t), Lab: lab, Sessions: 20, Limit: 15 * time.Second, LogLevel: "warn", Report: log{t},
	})
	if err != nil {
		t.Fatal(err)
	}
	checkGone(t, lab+"m")
	// 19 sessions, of which 6 must go.
	if !r.OK || r.Sessions != 19 || r.SessionsMoved < 6 || r.SessionsMoved > 9 || r.MediaPacketsLost != 0 || r.ClientErrors != 0 || r.Clients["ffmpeg"] != 4 {
		t.Errorf("%+v", r)
	}
}

// TestShedCalls does the same to calls of SIP over TCP, whose callers are sipp, with one connection for all calls or one for each.
func TestShedCalls(t *testing.T) {
	needPrograms(t, scenario.MediaPrograms()...)
	lab := labName("sc")
	r, err := scenario.ShedSessions(testContext(t, time.Minute), scenario.ShedConfig{
		Command: binary(t), Lab: lab, Sessions: 20, Signalling: streamer.SIP, Limit: 15 * time.Second, LogLevel: "warn", Report: log{t},
	})
	if err != nil {
		t.Fatal(err)
	}
	checkGone(t, lab+"m")
	if !r.OK || r.Sessions != 19 || r.SessionsMoved < 6 || r.SessionsMoved > 9 || r.MediaPacketsLost != 0 || r.ClientErrors != 0 || r.Clients["sipp"] != 19 {
		t.Errorf("%+v", r)
	}
	t.Logf("%+v", r)
}
