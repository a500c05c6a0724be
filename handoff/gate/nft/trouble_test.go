// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"
)

func TestTrouble(t *testing.T) {
	broken := errors.New("no buffer space")
	type step struct {
		after time.Duration // the one before
		err   error
		ends  bool
		lines int // logged so far
	}
	for _, tt := range []struct {
		name  string
		steps []step
	}{
		{"well", []step{{0, nil, false, 0}, {time.Hour, nil, false, 0}}},
		{"once", []step{{0, broken, false, 1}, {time.Second, nil, false, 2}, {time.Second, nil, false, 2}}},
		{"for long", []step{{0, broken, false, 1}, {giveUpAfter / 2, broken, false, 1}, {giveUpAfter / 2, broken, true, 1}}},
		{"again and again", []step{{0, broken, false, 1}, {giveUpAfter / 2, nil, false, 2}, {giveUpAfter / 2, broken, false, 3}, {giveUpAfter / 2, broken, false, 3}}},
		{"closed", []step{{0, ErrClosed, true, 0}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var text bytes.Buffer
			log := slog.New(slog.NewTextHandler(&text, nil))
			x, now := trouble{what: "do it"}, time.Unix(1, 0)
			for i, s := range tt.steps {
				now = now.Add(s.after)
				err := x.take(now, s.err, log)
				if s.ends != (err != nil) || err != nil && !errors.Is(err, s.err) {
					t.Errorf("step %d: %v", i, err)
				}
				if n := strings.Count(text.String(), "\n"); n != s.lines {
					t.Errorf("step %d: %d lines are logged, want %d:\n%s", i, n, s.lines, &text)
				}
			}
		})
	}
}
