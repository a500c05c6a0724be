// SPDX-License-Identifier: Apache-2.0

package peek

import (
	"crypto/tls"
	"errors"
	"strconv"
	"strings"
	"testing"
)

func benchmarkParse(b *testing.B, cfg Config, input []byte) {
	p := newParser(b, cfg)
	b.SetBytes(int64(len(input)))
	b.ReportAllocs()
	for b.Loop() {
		var g Progress
		if _, err := p.Parse(&g, input); err != nil {
			b.Fatal(err)
		}
	}
}

// browserHead is as long as what browsers send.
const browserHead = "GET /static/img/logo.png?v=3 HTTP/1.1\r\nHost: shop.example\r\n" +
	"User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\n" +
	"Accept: image/avif,image/webp,image/png,image/svg+xml,image/*;q=0.8,*/*;q=0.5\r\nAccept-Language: en-US,en;q=0.5\r\n" +
	"Accept-Encoding: gzip, deflate, br, zstd\r\nConnection: keep-alive\r\nReferer: http://shop.example/\r\n" +
	"Cookie: session=5f1d0c4b9a; srv=b2; consent=yes\r\nPriority: u=5, i\r\n\r\n"

func BenchmarkHTTP1(b *testing.B) {
	b.Run("curl", func(b *testing.B) {
		benchmarkParse(b, Config{}, []byte("GET /a HTTP/1.1\r\nHost: shop.example\r\nUser-Agent: curl/8.14.1\r\nAccept: */*\r\n\r\n"))
	})
	b.Run("browser", func(b *testing.B) { benchmarkParse(b, Config{}, []byte(browserHead)) })
	b.Run("proxy2", func(b *testing.B) {
		head := proxy2(0x21, 0x11, endpoints(proxySource, proxyDestination)...) + browserHead
		benchmarkParse(b, Config{ProxyProtocol: true}, []byte(head))
	})
}

func BenchmarkTLS(b *testing.B) {
	for _, c := range []struct {
		name string
		cfg  *tls.Config
	}{
		{"postquantum", &tls.Config{ServerName: "shop.example", NextProtos: []string{"h2", "http/1.1"}}},
		{"tls12", &tls.Config{ServerName: "shop.example", MaxVersion: tls.VersionTLS12}},
	} {
		flight := helloOf(b, c.cfg)
		b.Run(c.name, func(b *testing.B) { benchmarkParse(b, Config{Mode: TLS}, flight) })
		b.Run(c.name+"/records", func(b *testing.B) { benchmarkParse(b, Config{Mode: TLS}, inRecords(flight, 500)) })
	}
}

func BenchmarkHTTP2(b *testing.B) {
	benchmarkParse(b, Config{Mode: HTTP2}, newConversation().request(usual("user-agent", "curl/8.14.1", "accept", "*/*")...))
}

func BenchmarkKey(b *testing.B) {
	p := newParser(b, Config{})
	var g Progress
	key, err := p.Parse(&g, []byte(browserHead))
	if err != nil {
		b.Fatal(err)
	}
	for name, find := range map[string]func() (string, bool){
		"header": func() (string, bool) { return key.Header("priority") },
		"cookie": func() (string, bool) { return key.Cookie("srv") },
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, ok := find(); !ok {
					b.Fatal("not found")
				}
			}
		})
	}
}

// BenchmarkTrickle is a client that sends a head byte by byte: the time per byte must not grow with its length.
func BenchmarkTrickle(b *testing.B) {
	p := newParser(b, Config{})
	for _, size := range []int{1 << 10, 4 << 10, 16 << 10} {
		head := []byte("GET / HTTP/1.0\r\nX: " + strings.Repeat("x", size))
		b.Run(strconv.Itoa(size), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				var g Progress
				for n := range size {
					if _, err := p.Parse(&g, head[:n]); !errors.Is(err, ErrMore) {
						b.Fatal(err)
					}
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(size), "ns/byte")
		})
	}
}
