// SPDX-License-Identifier: Apache-2.0

package criu

import (
	"errors"
	"testing"
)

func TestVersion(t *testing.T) {
	for _, test := range []struct {
		v    Version
		text string
		old  bool
	}{
		{Version{3, 17, 1}, "3.17.1", true},
		{Version{4, 1, 1}, "4.1.1", true},
		{Version{4, 2, 0}, "4.2", false},
		{Version{4, 2, 1}, "4.2.1", false},
		{Version{5, 0, 0}, "5.0", false},
		{Version{}, "0.0", true},
	} {
		if got := test.v.String(); got != test.text {
			t.Errorf("%v is written %q", test.text, got)
		}
		if err := test.v.check(); errors.Is(err, ErrTooOld) != test.old {
			t.Errorf("%v: %v", test.v, err)
		}
	}
}
