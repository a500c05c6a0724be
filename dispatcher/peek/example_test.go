// SPDX-License-Identifier: Apache-2.0

package peek_test

import (
	"errors"
	"fmt"

	"github.com/rehome-net/rehome/dispatcher/peek"
)

// The bytes of a connection come in pieces; each time all of them are peeked again.
func ExampleParser_Parse() {
	parser, err := peek.New(peek.Config{Mode: peek.HTTP})
	if err != nil {
		fmt.Println(err)
		return
	}
	var progress peek.Progress
	for _, peeked := range []string{
		"GET /static/",
		"GET /static/logo.png HTTP/1.1\r\nHost: Shop.Exam",
		"GET /static/logo.png HTTP/1.1\r\nHost: Shop.Example:8080\r\nCookie: srv=b2\r\n\r\n",
	} {
		key, err := parser.Parse(&progress, []byte(peeked))
		if errors.Is(err, peek.ErrMore) {
			fmt.Println("wait for byte", progress.Need())
			continue
		}
		cookie, _ := key.Cookie("srv")
		fmt.Println(key.Host, key.Path, cookie)
	}
	// Output:
	// wait for byte 13
	// wait for byte 47
	// shop.example /static/logo.png b2
}

func ExampleRejectError() {
	parser, err := peek.New(peek.Config{Mode: peek.HTTP})
	if err != nil {
		fmt.Println(err)
		return
	}
	var progress peek.Progress
	_, err = parser.Parse(&progress, []byte("GET /a/../b HTTP/1.1\r\nHost: shop.example\r\n\r\n"))
	var reject *peek.RejectError
	if errors.As(err, &reject) {
		fmt.Println(reject.Reason)
		fmt.Printf("%q\n", reject.Answer())
	}
	// Output:
	// path-ambiguous
	// "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
}

func ExampleKey_Answer() {
	parser, err := peek.New(peek.Config{Mode: peek.HTTP, ProxyProtocol: true})
	if err != nil {
		fmt.Println(err)
		return
	}
	var progress peek.Progress
	key, err := parser.Parse(&progress, []byte("PROXY TCP4 192.0.2.1 192.0.2.9 4000 80\r\nGET / HTTP/1.1\r\nHost: nobody\r\n\r\n"))
	fmt.Println(key.Proxy.Source, key.Proxy.Len, err)
	fmt.Printf("%q\n", key.Answer(peek.NoRoute))
	// Output:
	// 192.0.2.1:4000 40 <nil>
	// "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
}
