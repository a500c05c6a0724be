// SPDX-License-Identifier: Apache-2.0

package wire

import "fmt"

// RefusedError is a no from another party, with the code of its Refuse, LeaseRefused or ImportRefused frame.
type RefusedError struct {
	Who    string // such as "entry front"
	Code   Code
	Reason string
}

// Error returns who refused and why.
func (r *RefusedError) Error() string {
	if r.Reason == "" {
		return fmt.Sprintf("%s refused: %v", r.Who, r.Code)
	}
	return fmt.Sprintf("%s refused: %v: %s", r.Who, r.Code, r.Reason)
}

// Refusef returns a RefusedError.
func Refusef(who string, code Code, format string, args ...any) error {
	return &RefusedError{Who: who, Code: code, Reason: fmt.Sprintf(format, args...)}
}
