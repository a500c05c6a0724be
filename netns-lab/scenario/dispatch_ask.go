// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"

	"golang.org/x/net/http2"
)

// Ask asks a service one question through a front, with a connection of its own, and checks that the right server
// answers.
func (f *Farm) Ask(ctx context.Context, front Front, s Service) error {
	return f.ask(ctx, front, s, false)
}

// ask is Ask by IPv4 or IPv6.
func (f *Farm) ask(ctx context.Context, front Front, s Service, v6 bool) error {
	switch s {
	case Linked:
		return f.expect(ctx, front, s, "http://shop.example"+LinkedPath+"who", v6)
	case Shop:
		return f.expect(ctx, front, s, "https://"+ShopName+"/who", v6)
	case Vault:
		return f.expect(ctx, front, s, "https://"+VaultName+"/who", v6)
	case Store:
		return f.ping(ctx, front, v6)
	}
	return f.expect(ctx, front, s, "http://"+ShopName+"/who", v6)
}

// expect fetches a URL, whose host name is only a name, and checks that the answer is the name of the service's host.
func (f *Farm) expect(ctx context.Context, front Front, s Service, url string, v6 bool) error {
	body, err := f.fetch(ctx, front, s, url, v6)
	if err != nil {
		return err
	}
	if who := strings.TrimSpace(body); who != s.Host() {
		return fmt.Errorf("%s answered for %s, want %s", who, url, s.Host())
	}
	return nil
}

// fetch fetches a URL with a connection of its own.
func (f *Farm) fetch(ctx context.Context, front Front, s Service, url string, v6 bool) (body string, err error) {
	target, err := front.Target(f, s, v6)
	if err != nil {
		return "", err
	}
	roots, err := f.roots()
	if err != nil {
		return "", err
	}
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return f.Client().Dial(ctx, "tcp", target.String())
	}
	var transport http.RoundTripper = &http.Transport{
		DialContext: dial, DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: roots},
	}
	if s == Clear {
		h2 := &http2.Transport{
			AllowHTTP:      true,
			DialTLSContext: func(ctx context.Context, n, a string, _ *tls.Config) (net.Conn, error) { return dial(ctx, n, a) },
		}
		defer h2.CloseIdleConnections()
		transport = h2
	}
	client := http.Client{Transport: transport, Timeout: askTimeout}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, resp.Body.Close()) }()
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s: %s", url, resp.Status)
	}
	text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
	return string(text), err
}

// roots returns the authority that has signed the servers' certificates.
func (f *Farm) roots() (*x509.CertPool, error) {
	pem, err := os.ReadFile(f.authority.path())
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s: no certificate", f.authority.path())
	}
	return pool, nil
}

// ping asks redis whether it is there.
func (f *Farm) ping(ctx context.Context, front Front, v6 bool) error {
	target, err := front.Target(f, Store, v6)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	conn, err := f.Client().Dial(ctx, "tcp", target.String())
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // the answer has been read
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return err
		}
	}
	if _, err := io.WriteString(conn, "PING\r\n"); err != nil {
		return err
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return err
	}
	if line != "+PONG\r\n" {
		return fmt.Errorf("redis answered %q", line)
	}
	return nil
}
