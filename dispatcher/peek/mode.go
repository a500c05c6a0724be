// SPDX-License-Identifier: Apache-2.0

package peek

// Mode says what a service's clients speak.
type Mode uint8

// Names are those of a service's mode in the dispatcher's configuration.
const (
	HTTP  Mode = iota // HTTP/1.0 and HTTP/1.1 (RFC 9112)
	TLS               // a TLS ClientHello (RFC 8446, 5246)
	HTTP2             // HTTP/2 with prior knowledge (RFC 9113, 3.3)
	TCP               // nothing is looked at, except a PROXY protocol header
)

// String returns the mode's name in the configuration.
func (m Mode) String() string {
	switch m {
	case HTTP:
		return "http"
	case TLS:
		return "tls"
	case HTTP2:
		return "h2"
	case TCP:
		return "tcp"
	}
	return "unknown"
}
