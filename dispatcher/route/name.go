// SPDX-License-Identifier: Apache-2.0

package route

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// maxName is the length of the longest name that DNS can carry in text (RFC 1035, section 2.3.4: 255 octets on the wire).
const maxName = 253

// maxLabel is the length of the longest label (RFC 1035, section 2.3.4).
const maxLabel = 63

// appendName appends the form of a host or server name in which names are compared: lower case, without port, final dot
// and brackets. Parsers have mostly brought it into that form already. It returns nil for a name that no rule can have.
func appendName(b []byte, name string) []byte {
	switch colon := strings.IndexByte(name, ':'); {
	case strings.HasPrefix(name, "["):
		end := strings.IndexByte(name, ']')
		if end < 0 {
			return nil
		}
		name = name[1:end]
	case colon >= 0 && colon == strings.LastIndexByte(name, ':'):
		name = strings.TrimSuffix(name[:colon], ".")
	case colon < 0:
		name = strings.TrimSuffix(name, ".")
	}
	if name == "" || len(name) > maxName {
		return nil
	}
	for i := range len(name) {
		c := name[i]
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		b = append(b, c)
	}
	return b
}

// ruleName returns a rule's name as appendName would write it, without "*.", and whether it is a wildcard.
func ruleName(text string) (name string, wildcard bool, err error) {
	if strings.HasPrefix(text, "[") || strings.Count(text, ":") > 1 {
		literal := text
		if inner, ok := strings.CutPrefix(text, "["); ok {
			literal, ok = strings.CutSuffix(inner, "]")
			if !ok {
				return "", false, fmt.Errorf("%q: want an IPv6 address alone within brackets: a service's addresses say the port", text)
			}
		}
		addr, err := netip.ParseAddr(literal)
		if err != nil || !addr.Is6() || addr.Zone() != "" {
			return "", false, fmt.Errorf("%q: want an IPv6 address or a name, without port", text)
		}
		return addr.String(), false, nil
	}
	rest, wildcard := strings.CutPrefix(text, "*.")
	rest = strings.TrimSuffix(rest, ".")
	if len(rest) > maxName {
		return "", false, fmt.Errorf("%d bytes long, at most %d", len(rest), maxName)
	}
	for label := range strings.SplitSeq(rest, ".") {
		if err := checkLabel(label); err != nil {
			return "", false, fmt.Errorf("%q: %w", text, err)
		}
	}
	return string(appendName(nil, rest)), wildcard, nil
}

func checkLabel(label string) error {
	switch {
	case label == "":
		return errors.New("a label between dots is empty")
	case len(label) > maxLabel:
		return fmt.Errorf("a label of %d bytes, at most %d", len(label), maxLabel)
	}
	for _, c := range label {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '_':
		case c == '*':
			return errors.New("a * stands only as the whole first label, as in *.example; for any name leave it out")
		case c == ':':
			return errors.New("leave the port out: a service's addresses say it")
		case c >= 0x80:
			return errors.New("write an international name as clients send it, with xn--")
		default:
			return fmt.Errorf("%q is no character of a name", c)
		}
	}
	return nil
}
