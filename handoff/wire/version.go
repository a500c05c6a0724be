// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"errors"
	"fmt"
)

// The versions of the protocol that this package speaks.
const (
	MinVersion uint16 = 1
	MaxVersion uint16 = 1
)

// ErrVersion means that two sides have no version in common.
var ErrVersion = errors.New("wire: no version in common")

// NewHello returns the Hello of a side called name.
func NewHello(name, software string) *Hello {
	return &Hello{Min: MinVersion, Max: MaxVersion, Name: name, Software: software}
}

// Negotiate returns the highest version that both this package and the sender of h speak.
func Negotiate(h *Hello) (uint16, error) {
	v := min(MaxVersion, h.Max)
	if v < MinVersion || v < h.Min {
		return 0, fmt.Errorf("%w: %q speaks %d to %d, this side %d to %d: upgrade the older one",
			ErrVersion, h.Name, h.Min, h.Max, MinVersion, MaxVersion)
	}
	return v, nil
}
