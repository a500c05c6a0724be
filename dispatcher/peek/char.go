// SPDX-License-Identifier: Apache-2.0

package peek

import "strings"

// text is what a piece of the connection's start is held in: peeked bytes, or a copy of them.
type text interface{ ~string | ~[]byte }

const (
	// Characters of a token (RFC 9110, 5.6.2), one bit each: below 64, and from 64 on.
	tokenLow  uint64 = 1<<'!' | 1<<'#' | 1<<'$' | 1<<'%' | 1<<'&' | 1<<'\'' | 1<<'*' | 1<<'+' | 1<<'-' | 1<<'.' | (1<<10-1)<<'0'
	tokenHigh uint64 = 1<<('^'-64) | 1<<('_'-64) | 1<<('`'-64) | 1<<('|'-64) | 1<<('~'-64) | (1<<26-1)<<('A'-64) | (1<<26-1)<<('a'-64)
)

func isToken(c byte) bool {
	if c < 64 {
		return tokenLow>>c&1 != 0
	}
	return c < 128 && tokenHigh>>(c-64)&1 != 0
}

// isControl tells control characters, tab included.
func isControl(c byte) bool { return c < ' ' || c == 0x7f }

// hasControl reports whether s has a control character other than tab.
func hasControl[T text](s T) bool {
	for i := range len(s) {
		if isControl(s[i]) && s[i] != '\t' {
			return true
		}
	}
	return false
}

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c + ('a' - 'A')
	}
	return c
}

// equalFold compares without regard to the case of ASCII letters, and of no others, unlike strings.EqualFold.
func equalFold[T text](a T, b string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range len(a) {
		if lower(a[i]) != lower(b[i]) {
			return false
		}
	}
	return true
}

// trim takes optional white space off both ends (RFC 9110, 5.6.3).
func trim(s string) string { return strings.Trim(s, " \t") }

// unhex returns the value of a hexadecimal digit, or 16.
func unhex(c byte) byte {
	switch c = lower(c); {
	case '0' <= c && c <= '9':
		return c - '0'
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10
	}
	return 16
}
