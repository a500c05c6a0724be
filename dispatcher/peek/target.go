// SPDX-License-Identifier: Apache-2.0

package peek

import "strings"

// splitTarget takes a request's target apart (RFC 9112, 3.2): origin, absolute and asterisk form. Path and query are as sent.
func splitTarget(method, target string) (authority, path, query string, r Reason) {
	if strings.Contains(target, "#") {
		return "", "", "", TargetMalformed // nginx ends the path there, net/http does not
	}
	if target == "*" {
		if method != "OPTIONS" {
			return "", "", "", TargetMalformed
		}
		return "", target, "", accepted
	}
	if !strings.HasPrefix(target, "/") {
		scheme, rest, ok := strings.Cut(target, "://")
		if !ok || !equalFold(scheme, "http") && !equalFold(scheme, "https") {
			return "", "", "", TargetMalformed
		}
		end := strings.IndexAny(rest, "/?")
		if end < 0 {
			end = len(rest)
		}
		authority, target = rest[:end], rest[end:]
		if authority == "" || strings.Contains(authority, "@") {
			return "", "", "", TargetMalformed
		}
	}
	path, query, _ = strings.Cut(target, "?")
	if path == "" {
		path = "/"
	}
	return authority, path, query, accepted
}

// cleanPath decodes a path's escapes and leaves empty segments out. A path with dot segments is ambiguous: nginx resolves
// them, net/http hands them on, and browsers do not send them.
func cleanPath(path string, slashes bool) (string, Reason) {
	if !strings.Contains(path, "%") && !strings.Contains(path, "//") && !strings.Contains(path, "/.") {
		return path, accepted
	}
	clean := make([]byte, 0, len(path))
	segment := 0 // where the current one begins in clean
	for i := 0; i < len(path); {
		c, escaped, n := unescape(path[i:])
		if n == 0 || c == 0 {
			return "", PathAmbiguous
		}
		i += n
		if c != '/' {
			clean = append(clean, c)
			continue
		}
		if isDots(clean[segment:]) || escaped && !slashes {
			return "", PathAmbiguous
		}
		switch {
		case escaped:
			clean = append(clean, "%2F"...)
		case len(clean) == 0 || clean[len(clean)-1] != '/':
			clean = append(clean, '/')
		}
		segment = len(clean)
	}
	if isDots(clean[segment:]) {
		return "", PathAmbiguous
	}
	return string(clean), accepted
}

// unescape returns the first character of s, whether it was escaped, and how long it is; 0 if the escape is broken.
func unescape(s string) (c byte, escaped bool, n int) {
	if s[0] != '%' {
		return s[0], false, 1
	}
	if len(s) < 3 || unhex(s[1]) > 15 || unhex(s[2]) > 15 {
		return 0, false, 0
	}
	return unhex(s[1])<<4 | unhex(s[2]), true, 3
}

func isDots(segment []byte) bool {
	return string(segment) == "." || string(segment) == ".."
}
