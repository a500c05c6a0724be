// SPDX-License-Identifier: Apache-2.0

package criu

import (
	"cmp"
	"fmt"
)

// Version is a release of CRIU.
type Version struct {
	Major, Minor, Patch int
}

// Needed is the oldest release that works: 3.17 does not start on Linux 6.13 and later, 4.1 fails on every TCP socket of 6.16 and
// later, and its own check notices neither.
func Needed() Version { return Version{Major: 4, Minor: 2} }

// String returns the version as CRIU writes it.
func (v Version) String() string {
	if v.Patch == 0 {
		return fmt.Sprintf("%d.%d", v.Major, v.Minor)
	}
	return fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Patch)
}

// Compare returns -1, 0 or 1 as v is older than, the same as, or newer than o.
func (v Version) Compare(o Version) int {
	return cmp.Or(cmp.Compare(v.Major, o.Major), cmp.Compare(v.Minor, o.Minor), cmp.Compare(v.Patch, o.Patch))
}

// check returns an error, which is ErrTooOld, unless the version can be used.
func (v Version) check() error {
	if v.Compare(Needed()) < 0 {
		return fmt.Errorf("CRIU %v found: %w", v, ErrTooOld)
	}
	return nil
}
