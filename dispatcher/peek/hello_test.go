// SPDX-License-Identifier: Apache-2.0

package peek

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// helloOf returns the first flight of a crypto/tls client.
func helloOf(t testing.TB, cfg *tls.Config) []byte {
	t.Helper()
	client, server := net.Pipe()
	defer server.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- tls.Client(client, cfg).HandshakeContext(ctx) }()
	b := make([]byte, 64<<10)
	n, err := server.Read(b)
	if err != nil {
		t.Fatal(err, <-done)
	}
	client.Close()
	<-done
	return b[:n]
}

// inRecords cuts the handshake message of a first flight into records of the given size.
func inRecords(flight []byte, size int) (b []byte) {
	for message := flight[recordHeader:]; len(message) > 0; {
		n := min(size, len(message))
		b = append(b, recordHandshake, 3, 1, byte(n>>8), byte(n))
		b = append(b, message[:n]...)
		message = message[n:]
	}
	return b
}

var helloConfigs = []struct {
	name string
	cfg  tls.Config
	want view
}{
	{
		"default, post-quantum",
		tls.Config{ServerName: "Shop.Example", NextProtos: []string{"h2", "http/1.1"}},
		view{SNI: "shop.example", ALPN: []string{"h2", "http/1.1"}, TLSVersion: tls.VersionTLS13},
	},
	{
		"no name, unusual protocol",
		tls.Config{InsecureSkipVerify: true, NextProtos: []string{"x"}},
		view{ALPN: []string{"x"}, TLSVersion: tls.VersionTLS13},
	},
	{
		"TLS 1.2",
		tls.Config{ServerName: "a_b.example", MaxVersion: tls.VersionTLS12},
		view{SNI: "a_b.example", TLSVersion: tls.VersionTLS12},
	},
	{
		"TLS 1.0",
		tls.Config{ServerName: "a", MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS10},
		view{SNI: "a", TLSVersion: tls.VersionTLS10},
	},
	{
		"one classical curve",
		tls.Config{ServerName: "a.example", CurvePreferences: []tls.CurveID{tls.X25519}},
		view{SNI: "a.example", TLSVersion: tls.VersionTLS13},
	},
}

func TestHello(t *testing.T) {
	p := newParser(t, Config{Mode: TLS})
	for i := range helloConfigs {
		c := &helloConfigs[i]
		t.Run(c.name, func(t *testing.T) {
			flight := helloOf(t, &c.cfg)
			if i == 0 && len(flight) < 1400 {
				t.Errorf("%d bytes; a post-quantum hello has more", len(flight))
			}
			for _, size := range []int{maxRecord, 700, 100, 5, 3, 1} {
				cut := inRecords(flight, size)
				if size == maxRecord {
					cut = flight
				}
				want := c.want
				want.Len = len(cut)
				// Early data may follow.
				key, err := checkPieces(t, p, append(cut, 23, 3, 3, 0))
				if diff := cmp.Diff(want, viewOf(key), byValue); err != nil || diff != "" {
					t.Fatalf("in records of %d bytes: %v (-want +got)\n%s", size, err, diff)
				}
				if !compareHello(t, &key, cut) {
					t.Errorf("crypto/tls does not read its own hello in records of %d bytes", size)
				}
				if size >= 100 {
					checkPrefixes(t, p, cut, key)
				}
			}
		})
	}
}

// TestHelloGolden reads what other clients sent once: testdata/<client>.hello.
func TestHelloGolden(t *testing.T) {
	p := newParser(t, Config{Mode: TLS})
	for name, want := range map[string]view{
		"openssl-3.0":       {SNI: "shop.example", ALPN: []string{"h2", "http/1.1"}, TLSVersion: tls.VersionTLS13, Len: 336},
		"openssl-3.0-tls12": {SNI: "shop.example", TLSVersion: tls.VersionTLS12, Len: 209},
		"go-1.26":           {SNI: "shop.example", ALPN: []string{"h2", "http/1.1"}, TLSVersion: tls.VersionTLS13, Len: 1522},
	} {
		b, err := os.ReadFile(filepath.Join("testdata", name+".hello"))
		if err != nil {
			t.Fatal(err)
		}
		key, err := checkPieces(t, p, b)
		if diff := cmp.Diff(want, viewOf(key), byValue); err != nil || diff != "" {
			t.Errorf("%s: %v (-want +got)\n%s", name, err, diff)
		}
	}
}

// TestHelloOpenSSL asks the openssl of this host.
func TestHelloOpenSSL(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("openssl is not installed; its hellos in testdata are read all the same")
	}
	p := newParser(t, Config{Mode: TLS})
	for _, c := range []struct {
		flags string
		want  view
	}{
		{"-servername Web.Example -alpn h2,http/1.1", view{SNI: "web.example", ALPN: []string{"h2", "http/1.1"}, TLSVersion: tls.VersionTLS13}},
		{"-noservername -no_tls1_3", view{TLSVersion: tls.VersionTLS12}},
		{"-servername a -split_send_frag 100 -max_send_frag 512", view{SNI: "a", TLSVersion: tls.VersionTLS13}},
	} {
		key, err := checkPieces(t, p, opensslHello(t, openssl, strings.Fields(c.flags)))
		c.want.Len = key.Len
		if diff := cmp.Diff(c.want, viewOf(key), byValue); err != nil || diff != "" {
			t.Errorf("%s: %v (-want +got)\n%s", c.flags, err, diff)
		}
	}
}

// opensslHello returns what openssl s_client sends first.
func opensslHello(t *testing.T, openssl string, flags []string) []byte {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, openssl, append([]string{"s_client", "-connect", l.Addr().String()}, flags...)...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait() // it ends when the connection does; whether it liked that is of no interest
	l.(*net.TCPListener).SetDeadline(time.Now().Add(10 * time.Second))
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	p := newParser(t, Config{Mode: TLS})
	var g Progress
	b := make([]byte, 0, p.Limit())
	for range p.Limit() {
		n, err := c.Read(b[len(b):cap(b)])
		if err != nil {
			t.Fatal(err)
		}
		b = b[:len(b)+n]
		if _, err := p.Parse(&g, b); !errors.Is(err, ErrMore) {
			break
		}
	}
	return b
}

// oneWay is a connection whose client has sent what it will ever send.
type oneWay struct {
	net.Conn
	sent *bytes.Reader
}

func (c oneWay) Read(b []byte) (int, error)  { return c.sent.Read(b) }
func (c oneWay) Write(b []byte) (int, error) { return len(b), nil }
func (c oneWay) Close() error                { return nil }

// compareHello holds that a crypto/tls server, if it accepts the hello, understands the same. It reports whether it did.
func compareHello(t testing.TB, key *Key, flight []byte) bool {
	t.Helper()
	var info *tls.ClientHelloInfo
	server := tls.Server(oneWay{sent: bytes.NewReader(flight)}, &tls.Config{
		GetConfigForClient: func(i *tls.ClientHelloInfo) (*tls.Config, error) {
			info = i
			return nil, errors.New("seen")
		},
	})
	if err := server.HandshakeContext(t.Context()); info == nil {
		return err == nil
	}
	version := uint16(0)
	for _, v := range info.SupportedVersions {
		if v <= versionTLS13 {
			version = max(version, v)
		}
	}
	if strings.ToLower(info.ServerName) != key.SNI || !slices.Equal(info.SupportedProtos, key.ALPN) ||
		version != key.TLSVersion && key.TLSVersion >= versionTLS10 {
		t.Errorf("%+v, crypto/tls %q %q %x", *key, info.ServerName, info.SupportedProtos, info.SupportedVersions)
	}
	return true
}

// vector puts the length of b in front of it, in size bytes.
func vector(size int, b ...byte) []byte {
	front := make([]byte, 0, size+len(b))
	for i := size - 1; i >= 0; i-- {
		front = append(front, byte(len(b)>>(8*i)))
	}
	return append(front, b...)
}

func extension(kind int, content ...byte) []byte {
	return append([]byte{byte(kind >> 8), byte(kind)}, vector(2, content...)...)
}

func serverName(name string) []byte {
	return extension(extensionServerName, vector(2, append([]byte{nameHost}, vector(2, []byte(name)...)...)...)...)
}

// handmade is a first flight of one record around these extensions; nil for none at all.
func handmade(extensions ...[]byte) []byte {
	body := append([]byte{3, 3}, make([]byte, 32)...)
	body = append(body, vector(1)...)
	body = append(body, vector(2, 0x1a, 0x1a, 0x13, 1)...)
	body = append(body, vector(1, 0)...)
	if extensions != nil {
		body = append(body, vector(2, bytes.Join(extensions, nil)...)...)
	}
	return inRecords(append(make([]byte, recordHeader), append([]byte{messageHello}, vector(3, body...)...)...), maxRecord)
}

// What follows the ClientHello in its last record is not part of it.
func TestHelloAndMore(t *testing.T) {
	p := newParser(t, Config{Mode: TLS})
	flight := append(handmade(serverName("a.example")), 20, 0, 0, 1)
	for _, size := range []int{maxRecord, 30} {
		b := inRecords(flight, size)
		key, err := checkPieces(t, p, b)
		if err != nil || key.SNI != "a.example" || key.Len != len(b) {
			t.Errorf("in records of %d bytes: %+v %v", size, key, err)
		}
	}
}

func TestHelloHandmade(t *testing.T) {
	grease := extension(0x1a1a)
	alpn := func(b ...byte) []byte { return extension(extensionALPN, vector(2, b...)...) }
	versions := func(b ...byte) []byte { return extension(extensionSupportedVersions, vector(1, b...)...) }
	flight := handmade(serverName("a"))
	changed := func(at int, c byte) []byte {
		b := bytes.Clone(flight)
		b[at] = c
		return b
	}
	long := func(n int) []byte { return handmade(serverName("a"), extension(21, make([]byte, n)...)) }
	for _, c := range []struct {
		name string
		b    []byte
		want Reason
		view view
	}{
		{"no extensions", handmade(), accepted, view{TLSVersion: 0x303}},
		{"empty extensions", handmade([]byte{}), accepted, view{TLSVersion: 0x303}},
		{"GREASE", handmade(grease, serverName("A.b"), alpn(2, 0x1a, 0x1a, 2, 'h', '2'), versions(0x1a, 0x1a, 3, 3, 3, 4)), accepted, view{SNI: "a.b", ALPN: []string{"\x1a\x1a", "h2"}, TLSVersion: 0x304}},
		{"only unknown versions", handmade(versions(0x1a, 0x1a, 0x7f, 0x1c)), accepted, view{}},
		{"ECH", handmade(serverName("outer"), extension(extensionECH, 0, 1)), accepted, view{SNI: "outer", ECH: true, TLSVersion: 0x303}},
		{"longest", long(defaultBytes - 68), accepted, view{SNI: "a", TLSVersion: 0x303}},
		{"too long", long(defaultBytes - 67), TooLarge, view{}},
		{"two names", handmade(extension(extensionServerName, vector(2, 0, 0, 1, 'a', 0, 0, 1, 'b')...)), NameMalformed, view{}},
		{"unknown type of name", handmade(extension(extensionServerName, vector(2, 1, 0, 1, 'a')...)), NameMalformed, view{}},
		{"no name in the list", handmade(extension(extensionServerName, 0, 0)), HelloMalformed, view{}},
		{"empty name extension", handmade(extension(extensionServerName)), HelloMalformed, view{}},
		{"name list too short", handmade(extension(extensionServerName, 0, 5, 0, 0, 1, 'a')), HelloMalformed, view{}},
		{"behind the name list", handmade(extension(extensionServerName, 0, 4, 0, 0, 1, 'a', 0)), HelloMalformed, view{}},
		{"empty name", handmade(serverName("")), NameMalformed, view{}},
		{"final dot", handmade(serverName("a.")), NameMalformed, view{}},
		{"NUL in name", handmade(serverName("a\x00.b")), NameMalformed, view{}},
		{"v6", handmade(serverName("::1")), NameMalformed, view{}},
		{"name twice", handmade(serverName("a"), serverName("a")), HelloMalformed, view{}},
		{"ALPN twice", handmade(alpn(1, 'a'), alpn(1, 'a')), HelloMalformed, view{}},
		{"versions twice", handmade(versions(3, 4), versions(3, 4)), HelloMalformed, view{}},
		{"ALPN empty", handmade(alpn()), HelloMalformed, view{}},
		{"ALPN empty name", handmade(alpn(1, 'a', 0)), HelloMalformed, view{}},
		{"ALPN short", handmade(alpn(2, 'a')), HelloMalformed, view{}},
		{"ALPN many", handmade(alpn(bytes.Repeat([]byte{1, 'a'}, defaultFields+1)...)), TooManyFields, view{}},
		{"versions odd", handmade(versions(3, 4, 3)), HelloMalformed, view{}},
		{"versions empty", handmade(versions()), HelloMalformed, view{}},
		{"extension cut", handmade([]byte{0, 0, 0}), HelloMalformed, view{}},
		{"extension too long", handmade([]byte{0, 9, 0, 1}), HelloMalformed, view{}},
		{"SSL 2", []byte{0x80, 0x2e, 1, 3, 1}, SpeaksSSL2, view{}},
		{"binary with high bit", []byte{0x80, 0x2e, 2}, NotTLS, view{}},
		{"plain HTTP", []byte("GET / HTTP/1.1\r\n"), SpeaksHTTP, view{}},
		{"binary", []byte{0}, NotTLS, view{}},
		{"SSH", []byte("SSH-2.0-x\r\n"), SpeaksHTTP, view{}},
		{"alert", changed(0, 21), NotTLS, view{}},
		{"record version", changed(1, 2), RecordMalformed, view{}},
		{"empty record", []byte{22, 3, 1, 0, 0}, RecordMalformed, view{}},
		{"record too long", []byte{22, 3, 1, 0x40, 1}, RecordMalformed, view{}},
		{"record as long as the limit", []byte{22, 3, 1, 0x40, 0}, TooLarge, view{}},
		{"other record inside", append(inRecords(flight, 10)[:15], 20, 3, 1, 0, 1, 1), RecordMalformed, view{}},
		{"server hello", changed(5, 2), HelloMalformed, view{}},
		{"endless message", []byte{22, 3, 1, 0, 4, 1, 0xff, 0xff, 0xff}, TooLarge, view{}},
		{"version", changed(9, 2), HelloMalformed, view{}},
		{"version 1.3 outside its extension", changed(10, 4), HelloMalformed, view{}},
		{"long session", changed(43, 33), HelloMalformed, view{}},
		{"suites odd", changed(45, 3), HelloMalformed, view{}},
		{"no suites", changed(45, 0), HelloMalformed, view{}},
		{"no compression", changed(50, 0), HelloMalformed, view{}},
		{"extensions short", changed(53, 1), HelloMalformed, view{}},
		{"message short", changed(8, flight[8]-1), HelloMalformed, view{}},
		{"nothing", nil, incomplete, view{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			key, err := checkPieces(t, newParser(t, Config{Mode: TLS}), c.b)
			wantReason(t, err, c.want)
			if c.want == accepted {
				c.view.Len = len(c.b)
				compareHello(t, &key, c.b)
			}
			if diff := cmp.Diff(c.view, viewOf(key), byValue); diff != "" {
				t.Errorf("-want +got\n%s", diff)
			}
		})
	}
}
