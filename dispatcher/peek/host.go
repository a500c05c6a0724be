// SPDX-License-Identifier: Apache-2.0

package peek

import (
	"net/netip"
	"strconv"
	"strings"
)

const (
	maxName  = 253 // RFC 1035, 2.3.4, without the final dot
	maxLabel = 63
)

// parseHost returns the host of a Host field or an authority (RFC 9110, 7.2), which may have a port.
func parseHost(s string) (string, Reason) {
	if strings.HasPrefix(s, "[") {
		return parseBracketed(s)
	}
	name, port, ok := strings.Cut(s, ":")
	if ok && !isPort(port) {
		return "", HostMalformed
	}
	name = strings.TrimSuffix(name, ".")
	if !isName(name) {
		return "", HostMalformed
	}
	return strings.ToLower(name), accepted
}

func parseBracketed(s string) (string, Reason) {
	literal, port, ok := strings.Cut(s[1:], "]")
	if !ok || port != "" && (port[0] != ':' || !isPort(port[1:])) {
		return "", HostMalformed
	}
	addr, err := netip.ParseAddr(literal)
	if err != nil || !addr.Is6() || addr.Zone() != "" {
		return "", HostMalformed
	}
	return addr.String(), accepted
}

// isPort accepts no digits at all, too: "host:" is legal.
func isPort(s string) bool {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	if s == "" {
		return true
	}
	_, err := strconv.ParseUint(s, 10, 16)
	return err == nil
}

// isName accepts what is looked up in the DNS in practice: labels of letters, digits, hyphen and underscore. An IPv4 address
// has that form, too.
func isName[T text](s T) bool {
	if len(s) == 0 || len(s) > maxName {
		return false
	}
	label := 0
	for i := range len(s) {
		switch c := lower(s[i]); {
		case c == '.':
			if label == 0 {
				return false
			}
			label = 0
			continue
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9', c == '-', c == '_':
			label++
		default:
			return false
		}
		if label > maxLabel {
			return false
		}
	}
	return label > 0
}
