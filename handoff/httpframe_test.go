// SPDX-License-Identifier: Apache-2.0

package handoff

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"
)

func TestRequestScanner(t *testing.T) {
	const get = "GET / HTTP/1.1\r\nHost: x\r\n\r\n"
	tests := []struct {
		name     string
		in       string
		count    uint64
		boundary bool
		lost     bool
	}{
		{"nothing", "", 0, true, false},
		{"one", get, 1, true, false},
		{"two at once", get + get, 2, true, false},
		{"one and a byte", get + "G", 1, false, false},
		{"one and a line", get + "GET / HTTP/1.1\r\n", 1, false, false},
		{"head without its last byte", get[:len(get)-1], 0, false, false},
		{"body", "POST / HTTP/1.1\r\ncontent-LENGTH: 3 \r\n\r\nabc", 1, true, false},
		{"body begun", "POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nab", 0, false, false},
		{"body that looks like a request", "POST / HTTP/1.1\r\nContent-Length: 27\r\n\r\n" + get + get[:5], 1, false, false},
		{"empty body", "POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n" + get, 2, true, false},
		{"chunks", "POST / HTTP/1.1\r\nTransfer-Encoding: Chunked\r\n\r\n3;a=b\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\n", 1, true, false},
		{"chunks, trailer", "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX: y\r\n\r\n" + get, 2, true, false},
		{"chunks without end", "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n", 0, false, false},
		{"HTTP/1.0", "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", 1, true, false},
		{"HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 0, false, true},
		{"CONNECT", "CONNECT a:1 HTTP/1.1\r\n\r\n", 0, false, true},
		{"upgrade", "GET / HTTP/1.1\r\nUpgrade: websocket\r\n\r\n", 0, false, true},
		{"bare LF", "GET / HTTP/1.1\n\n", 0, false, true},
		{"folded line", "GET / HTTP/1.1\r\nX: a\r\n Content-Length: 3\r\n\r\n", 0, false, true},
		{"space before the colon", "GET / HTTP/1.1\r\nContent-Length : 3\r\n\r\n", 0, false, true},
		{"no colon", "GET / HTTP/1.1\r\nContent-Length\r\n\r\n", 0, false, true},
		{"both lengths", "POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", 0, false, true},
		{"length twice", "POST / HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\n", 0, false, true},
		{"length of a kind", "POST / HTTP/1.1\r\nContent-Length: +3\r\n\r\n", 0, false, true},
		{"no length", "POST / HTTP/1.1\r\nContent-Length:\r\n\r\n", 0, false, true},
		{"length list", "POST / HTTP/1.1\r\nContent-Length: 3,3\r\n\r\n", 0, false, true},
		{"two codings", "POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 0, false, true},
		{"chunk size of a kind", "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0x1\r\n", 0, false, true},
		{"chunk too long", "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n", 0, false, true},
		{"CR in a line", "GET / HTTP/1.1\r\nX: a\rb\r\n\r\n", 0, false, true},
		{"long line", "GET /" + strings.Repeat("x", maxHeadLine+1), 0, false, true},
		{"endless head", "GET / HTTP/1.1\r\n" + strings.Repeat("X: "+strings.Repeat("y", 8000)+"\r\n", 200), 0, false, true},
		{"line noise", "\r\n\r\n" + get, 0, false, true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			for _, size := range []int{1, 2, 3, 7, len(test.in) + 1} {
				var s requestScanner
				for rest := []byte(test.in); len(rest) > 0; {
					n := min(size, len(rest))
					s.advance(rest[:n])
					rest = rest[n:]
				}
				if s.count != test.count && !test.lost || s.atBoundary() != test.boundary || s.lost() != test.lost {
					t.Fatalf("in pieces of %d: %d requests, boundary %t, lost %t; want %d, %t, %t",
						size, s.count, s.atBoundary(), s.lost(), test.count, test.boundary, test.lost)
				}
			}
		})
	}
}

// FuzzRequestScanner compares the scanner with net/http: where the scanner sees the end of a request, net/http must
// have seen it too, after the same byte.
func FuzzRequestScanner(f *testing.F) {
	f.Add([]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\nPOST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nab"))
	f.Add([]byte("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1;x\r\na\r\n0\r\nA: b\r\n\r\nGET / HTTP/1.0\r\n\r\n"))
	f.Add([]byte("GET / HTTP/1.1\r\nTransfer-Encoding: identity\r\nContent-Length: 1\r\n\r\n"))
	f.Add([]byte("POST / HTTP/1.1\r\nContent-Length: 1\r\ncontent-length: 01\r\n\r\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		var ends []int
		var s requestScanner
		for i := range raw {
			before := s.count
			if s.advance(raw[i : i+1]); s.count > before {
				ends = append(ends, i+1)
			}
		}
		source := bytes.NewReader(raw)
		br := bufio.NewReader(source)
		for _, end := range ends {
			req, err := http.ReadRequest(br)
			if err != nil {
				return // The server closes such a connection: it never becomes idle.
			}
			if _, err := io.Copy(io.Discard, req.Body); err != nil {
				return
			}
			if got := len(raw) - source.Len() - br.Buffered(); got != end {
				t.Fatalf("net/http ends a request after %d bytes, the scanner after %d", got, end)
			}
		}
	})
}
