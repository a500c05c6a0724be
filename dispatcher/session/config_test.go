// SPDX-License-Identifier: Apache-2.0

package session

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestConfig(t *testing.T) {
	for _, c := range []struct {
		name   string
		config Config
		want   string // part of the error; empty: none
	}{
		{"zero", Config{}, ""},
		{"largest", Config{MaxPerClient: MaxFlows, MaxAnnounced: 4096, MaxSignalling: 4096, MaxNames: 4096}, ""},
		{"flows", Config{MaxFlows: -1}, "MaxFlows -1"},
		{"too many flows", Config{MaxFlows: MaxFlows + 1}, "MaxFlows 16777216: want 0 to 16777215"},
		{"client", Config{MaxPerClient: -1}, "MaxPerClient -1"},
		{"announced", Config{MaxAnnounced: 4097}, "MaxAnnounced 4097"},
		{"signalling", Config{MaxSignalling: 4097}, "MaxSignalling 4097"},
		{"names", Config{MaxNames: -5}, "MaxNames -5"},
		{"shortest", Config{Timeouts: Timeouts{Signalling: MinTimeout, Media: MaxTimeout}}, ""},
		{"short", Config{Timeouts: Timeouts{Signalling: MinTimeout - 1}}, "signalling timeout 9.999999999s: outside the range"},
		{"long", Config{Timeouts: Timeouts{Media: MaxTimeout + 1}}, "media timeout 24h0m0.000000001s"},
		{"negative", Config{Timeouts: Timeouts{Media: -time.Second}}, "media timeout -1s"},
	} {
		t.Run(c.name, func(t *testing.T) {
			table, err := New(start(), c.config)
			if err == nil {
				defer release(t, table)
			}
			switch {
			case c.want == "" && (err != nil || table == nil):
				t.Errorf("error %v, want none", err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("error %v, want …%s…", err, c.want)
			}
		})
	}
}

func TestDefaults(t *testing.T) {
	got := Config{MaxNames: 3, Timeouts: Timeouts{Media: 20 * time.Second}}.withDefaults()
	want := Config{
		MaxFlows: 1 << 20, MaxPerClient: 4096, MaxAnnounced: 64, MaxSignalling: 64, MaxNames: 3,
		Timeouts: Timeouts{Signalling: time.Minute, Media: 20 * time.Second},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

// TestTerms holds that a session's own timeouts come before the table's, one by one.
func TestTerms(t *testing.T) {
	table, err := New(start(), Config{Timeouts: Timeouts{Signalling: 40 * time.Second, Media: 20 * time.Second}})
	if err != nil {
		t.Fatal(err)
	}
	key := benchKey(0)
	id, _, err := table.Open(start(), key, Terms{Timeouts: Timeouts{Media: 15 * time.Second}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	media := benchKey(1)
	if _, err := table.Announce(start(), id, []Announcement{{media.Client, media.Server, media.Protocol, "rtp"}}, nil); err != nil {
		t.Fatal(err)
	}
	for key, want := range map[Key]time.Duration{key: 40 * time.Second, media: 15 * time.Second} {
		if f, ok := table.Lookup(start(), key); !ok || f.Timeout != want {
			t.Errorf("%v: timeout %v, want %v", key, f.Timeout, want)
		}
	}
}

func TestErrors(t *testing.T) {
	key := benchKey(0)
	conflict := &OpError{"announce", key, &ConflictError{Session: 1<<32 | 2, Server: 3}}
	if !errors.Is(conflict, ErrConflict) || errors.Is(conflict, ErrFull) {
		t.Errorf("%v is not ErrConflict alone", conflict)
	}
	var with *ConflictError
	if !errors.As(conflict, &with) || with.Server != 3 {
		t.Errorf("%v does not say with whom", conflict)
	}
	for err, want := range map[error]string{
		conflict:                         "session: announce udp 10.0.0.0:40000 > 203.0.113.1:554: promised to a session on another server: session 2.1 on server 3",
		&OpError{"move", Key{}, ErrFull}: "session: move: session table is full: raise MaxFlows",
	} {
		if got := err.Error(); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
}
