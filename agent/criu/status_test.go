// SPDX-License-Identifier: Apache-2.0

package criu

import (
	"errors"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const statusText = "Name:\tredis server\nState:\tS (sleeping)\nPPid:\t1\nTracerPid:\t0\nNSpid:\t4711\t812\nNSpgid:\t4711\t812\nNSsid:\t0\t0\n" +
	"RssAnon:\t    2048 kB\nRssFile:\t 9 kB\nRssShmem:\t 1 kB\nnonsense\n"

func TestParseStatus(t *testing.T) {
	got, err := parseStatus(statusText)
	if err != nil {
		t.Fatal(err)
	}
	want := status{
		name: "redis server", state: 'S', parent: 1, pids: []int{4711, 812}, pgid: []int{4711, 812}, sids: []int{0, 0}, resident: 2049 << 10,
	}
	if d := cmp.Diff(want, got, cmp.AllowUnexported(status{})); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
	if got.inside() != 812 {
		t.Errorf("it sees itself as %d", got.inside())
	}
	for _, bad := range []string{"", "Name: x\n", "NSpid:\tone\n", "NSpid: 1\nPPid: \n", "NSpid: 1\nRssAnon: many kB\n"} {
		if s, err := parseStatus(bad); !errors.Is(err, errStatus) {
			t.Errorf("%q: got %+v and %v", bad, s, err)
		}
	}
}

func TestOwnStatus(t *testing.T) {
	s, err := readStatus(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if s.pids[0] != os.Getpid() || s.parent != os.Getppid() || s.resident == 0 {
		t.Errorf("got %+v", s)
	}
	if _, err := readStatus(1 << 30); !errors.Is(err, ErrNoProcess) {
		t.Errorf("got %v", err)
	}
}

func FuzzParseStatus(f *testing.F) {
	f.Add(statusText)
	f.Fuzz(func(t *testing.T, text string) {
		if s, err := parseStatus(text); err == nil && len(s.pids) == 0 {
			t.Error("a process without a number")
		}
	})
}
