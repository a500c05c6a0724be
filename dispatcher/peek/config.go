// SPDX-License-Identifier: Apache-2.0

package peek

import "fmt"

const (
	defaultBytes   = 16 << 10
	defaultFields  = 128
	defaultDecoded = 16 << 10

	minBytes = 256
	maxLimit = 1 << 20
)

// Config says how the connections of one service begin. The zero value reads HTTP/1 within the default limits.
type Config struct {
	Mode Mode
	// ProxyProtocol: every connection begins with a PROXY protocol header, version 1 or 2. One without is rejected, for the
	// receiver must not guess (PROXY protocol, section 2).
	ProxyProtocol bool
	// EncodedSlashes accepts "%2F" in a path. It stays as it is in Key.Path and separates nothing, as net/http's ServeMux
	// has it; nginx takes it for a slash. Where it is false such a path is rejected, as Apache does by default.
	EncodedSlashes bool
	Limits         Limits
}

// Limits bound what a client can make the parser do. A zero field means the default.
type Limits struct {
	// Bytes from the connection's start within which a key must be found, PROXY protocol header included. 16 KiB.
	Bytes int
	// Fields of a request's head, or protocols of a ClientHello's ALPN list. 128.
	Fields int
	// Decoded size of an HTTP/2 request's fields: name, value and 32 octets each (RFC 9113, 6.5.2). 16 KiB.
	Decoded int
}

// validate fills defaults in.
func (c *Config) validate() error {
	if c.Mode > TCP {
		return fmt.Errorf("peek: mode %d is unknown; use HTTP, TLS, HTTP2 or TCP", c.Mode)
	}
	for _, l := range []struct {
		name          string
		value         *int
		normal, least int
	}{
		{"Bytes", &c.Limits.Bytes, defaultBytes, minBytes},
		{"Fields", &c.Limits.Fields, defaultFields, 1},
		{"Decoded", &c.Limits.Decoded, defaultDecoded, minBytes},
	} {
		if *l.value == 0 {
			*l.value = l.normal
		}
		if *l.value < l.least || *l.value > maxLimit {
			return fmt.Errorf("peek: Limits.%s is %d; choose %d to %d", l.name, *l.value, l.least, maxLimit)
		}
	}
	return nil
}
