// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"errors"
	"fmt"
	"log/slog"
	"time"
)

// giveUpAfter is how long something that is done again and again may fail. A transaction fails when another program changes the ruleset at the same
// time, or memory is short; connections do not depend on this one. Whose table is gone for good does not come back by waiting.
const giveUpAfter = time.Minute

// trouble decides what becomes of failures of one thing that is done again and again.
type trouble struct {
	what  string
	since time.Time // of the first failure; zero: the last time it went well
	times int
}

// take takes in how it went. The error that it returns is the end: the gate is closed, or it has failed for long.
func (t *trouble) take(now time.Time, err error, log *slog.Logger) error {
	switch {
	case errors.Is(err, ErrClosed):
		return err
	case err == nil:
		if t.times > 0 {
			log.Info("nftables work again", "to", t.what, "failures", t.times, "after", now.Sub(t.since))
		}
		t.since, t.times = time.Time{}, 0
		return nil
	case t.times == 0:
		t.since = now
		log.Warn("nftables fail; it is tried again", "to", t.what, "error", err)
	}
	t.times++
	if d := now.Sub(t.since); d >= giveUpAfter {
		return fmt.Errorf("cannot %s, for %v now: look whether the table is there (nft list tables): %w", t.what, d, err)
	}
	return nil
}
