// SPDX-License-Identifier: Apache-2.0

package peek

import (
	"errors"
	"fmt"
)

// ErrMore means that the bytes so far fit, and more are needed to tell.
var ErrMore = errors.New("peek: more bytes needed")

// Reason says why a connection does not fit its service. Its String is fit for a metric's label.
type Reason uint8

// What parsers find.
const (
	accepted         Reason = iota
	TooLarge                // no key within Limits.Bytes, or Limits.Decoded
	TooManyFields           // more than Limits.Fields
	SpeaksHTTP              // plain HTTP/1 where TLS or HTTP/2 is spoken
	SpeaksHTTP2             // HTTP/2 where HTTP/1 is spoken
	SpeaksTLS               // TLS where plain text is spoken
	SpeaksSSL2              // an SSLv2 hello (RFC 6176 prohibits it)
	SpeaksProxy             // a PROXY protocol header in a service that has none
	ProxyMissing            // no PROXY protocol header in a service that has one
	ProxyMalformed          // a PROXY protocol header that breaks its syntax, or of an unknown version or command
	ControlCharacter        // in a request line or a field
	BareLF                  // a line ended by LF alone
	FoldedField             // a field line that begins with white space (RFC 9112, 5.2)
	FieldMalformed          // a field without colon or name, or with white space before the colon
	MethodMalformed         // no token, too long, or CONNECT
	TargetMalformed         // a target of no known form, or with a fragment, user or unknown scheme
	PathAmbiguous           // a path that servers read differently: dot segments, %00, a broken escape, an encoded slash
	VersionUnknown          // neither HTTP/1.0 nor HTTP/1.1
	HostMissing             // HTTP/1.1 without Host; HTTP/2 with neither :authority nor host
	HostRepeated            // more than one Host
	HostMalformed           // no name, IPv4 address or bracketed IPv6 address with an optional port
	HostContradicts         // Host is another host than the target's, or than :authority
	NotTLS                  // no TLS record
	RecordMalformed         // a TLS record of another type, version or length than a ClientHello has
	HelloMalformed          // a ClientHello that breaks its syntax
	NameMalformed           // a server name that is no DNS name, or more than one
	PrefaceMalformed        // not HTTP/2's connection preface
	FrameMalformed          // an HTTP/2 frame of a type, length or stream that must not stand there
	BlockMalformed          // an HTTP/2 field block that does not decode
	PseudoMalformed         // HTTP/2 pseudo-header fields unknown, repeated, missing or out of place

	incomplete // inside the package: ErrMore
)

// String returns a short name, lower case with hyphens.
func (r Reason) String() string {
	names := [...]string{
		accepted: "none", TooLarge: "too-large", TooManyFields: "too-many-fields",
		SpeaksHTTP: "speaks-http", SpeaksHTTP2: "speaks-http2", SpeaksTLS: "speaks-tls", SpeaksSSL2: "speaks-ssl2",
		SpeaksProxy: "speaks-proxy", ProxyMissing: "proxy-missing", ProxyMalformed: "proxy-malformed",
		ControlCharacter: "control-character", BareLF: "bare-lf", FoldedField: "folded-field",
		FieldMalformed: "field-malformed", MethodMalformed: "method-malformed", TargetMalformed: "target-malformed",
		PathAmbiguous: "path-ambiguous", VersionUnknown: "version-unknown", HostMissing: "host-missing",
		HostRepeated: "host-repeated", HostMalformed: "host-malformed", HostContradicts: "host-contradicts",
		NotTLS: "not-tls", RecordMalformed: "record-malformed", HelloMalformed: "hello-malformed",
		NameMalformed: "name-malformed", PrefaceMalformed: "preface-malformed", FrameMalformed: "frame-malformed",
		BlockMalformed: "block-malformed", PseudoMalformed: "pseudo-malformed",
	}
	if int(r) < len(names) {
		return names[r]
	}
	return "unknown"
}

// RejectError says that the connection does not fit its service; it will not with more bytes.
type RejectError struct {
	Mode   Mode
	Reason Reason
	// Offset in bytes from the connection's start of the element at fault: a line, record or frame.
	Offset int
}

// Error names the reason, the service's mode and the offset.
func (e *RejectError) Error() string {
	return fmt.Sprintf("peek: %s at byte %d of a connection to a service of mode %s", e.Reason, e.Offset, e.Mode)
}

// Is matches another RejectError of the same Reason, whatever its mode and offset.
func (e *RejectError) Is(target error) bool {
	t, ok := target.(*RejectError)
	return ok && t.Reason == e.Reason
}
