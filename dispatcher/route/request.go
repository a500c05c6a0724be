// SPDX-License-Identifier: Apache-2.0

package route

// Request is what a connection's first bytes show. What is not there, or not seen in the service's protocol, stays zero;
// conditions on it do not hold.
type Request struct {
	// Host is the Host header or :authority. An IPv6 address is in the form of RFC 5952, with or without brackets.
	Host string
	// Path is the path of the request without its query: unescaped but for %2F, without empty and dot segments.
	Path string
	// SNI is the server name of the ClientHello.
	SNI string
	// ALPN are the protocols that the client offers.
	ALPN []string
	// Header returns a header's value; it is asked with the name in lower case. Of several headers of one name it chooses.
	Header func(name string) (value string, ok bool)
	// Cookie returns a cookie's value.
	Cookie func(name string) (value string, ok bool)
}

func (r *Request) header(name string) (string, bool) {
	if r.Header == nil {
		return "", false
	}
	return r.Header(name)
}

func (r *Request) cookie(name string) (string, bool) {
	if r.Cookie == nil {
		return "", false
	}
	return r.Cookie(name)
}
