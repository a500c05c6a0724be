// SPDX-License-Identifier: Apache-2.0

package peek

import "strings"

const (
	extensionServerName        = 0
	extensionALPN              = 16
	extensionSupportedVersions = 43
	extensionECH               = 0xfe0d

	versionTLS10 = 0x0301
	versionTLS12 = 0x0303
	versionTLS13 = 0x0304

	maxSessionID = 32
	nameHost     = 0
)

// parseHello reads a ClientHello with its message header (RFC 8446, 4.1.2; RFC 5246, 7.4.1.2).
func parseHello(b []byte, protocols int, k *Key) Reason {
	r := reader{rest: b}
	r.take(messageHeader)
	version := r.uint16()
	r.take(32) // random
	session := r.vector8()
	suites := r.vector16()
	compressions := r.vector8()
	if r.short || version>>8 != 3 || version > versionTLS12 || len(session) > maxSessionID || len(suites) == 0 || len(suites)%2 != 0 || len(compressions) == 0 {
		return HelloMalformed
	}
	k.TLSVersion = version
	if len(r.rest) == 0 {
		return accepted // before TLS 1.2 a hello may end here
	}
	extensions := reader{rest: r.vector16()}
	if r.short || len(r.rest) != 0 {
		return HelloMalformed
	}
	var seen [4]bool
	for len(extensions.rest) > 0 {
		kind := extensions.uint16()
		content := reader{rest: extensions.vector16()}
		if extensions.short {
			return HelloMalformed
		}
		which, reason := 0, accepted
		switch kind {
		case extensionServerName:
			which, reason = 0, content.serverName(k)
		case extensionALPN:
			which, reason = 1, content.protocols(protocols, k)
		case extensionSupportedVersions:
			which, reason = 2, content.versions(k)
		case extensionECH:
			which, k.ECH = 3, true
		default:
			continue
		}
		if reason != accepted {
			return reason
		}
		if seen[which] {
			return HelloMalformed
		}
		seen[which] = true
	}
	return accepted
}

// serverName reads the list of RFC 6066, 3. It can hold names of other types, of which none was ever defined and which
// servers treat differently: it must hold one host name.
func (r *reader) serverName(k *Key) Reason {
	list := reader{rest: r.vector16()}
	kind, name := list.uint8(), list.vector16()
	switch {
	case r.short || len(r.rest) != 0 || list.short:
		return HelloMalformed
	case kind != nameHost || len(list.rest) != 0 || !isName(name):
		return NameMalformed
	}
	k.SNI = strings.ToLower(string(name))
	return accepted
}

// protocols reads the list of RFC 7301, 3.1.
func (r *reader) protocols(limit int, k *Key) Reason {
	list := reader{rest: r.vector16()}
	if r.short || len(r.rest) != 0 || len(list.rest) == 0 {
		return HelloMalformed
	}
	count := 0
	for l := list; len(l.rest) > 0; count++ {
		if name := l.vector8(); l.short || len(name) == 0 {
			return HelloMalformed
		}
	}
	if count > limit {
		return TooManyFields
	}
	k.ALPN = make([]string, 0, count)
	for len(list.rest) > 0 {
		k.ALPN = append(k.ALPN, protocol(list.vector8()))
	}
	return accepted
}

// protocol spares the copy of a name that most clients send.
func protocol(name []byte) string {
	for _, known := range [...]string{"h2", "http/1.1", "http/1.0", "acme-tls/1"} {
		if string(name) == known {
			return known
		}
	}
	return string(name)
}

// versions reads the list of RFC 8446, 4.2.1. A version that is unknown is left out, GREASE (RFC 8701) among them.
func (r *reader) versions(k *Key) Reason {
	list := reader{rest: r.vector8()}
	if r.short || len(r.rest) != 0 || len(list.rest) == 0 || len(list.rest)%2 != 0 {
		return HelloMalformed
	}
	k.TLSVersion = 0
	for len(list.rest) > 0 {
		if v := list.uint16(); v >= versionTLS10 && v <= versionTLS13 {
			k.TLSVersion = max(k.TLSVersion, v)
		}
	}
	return accepted
}
