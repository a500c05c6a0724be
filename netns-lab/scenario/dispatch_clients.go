// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	netnslab "github.com/rehome-net/rehome/netns-lab"
)

// ClientCheck lets a program that others wrote use a service through a front.
type ClientCheck struct {
	Name string
	// Program is what it needs on the machine, Service what it uses.
	Program string
	Service Service
	// V6 is IPv6.
	V6  bool
	run func(ctx context.Context, c *checking) error
}

// Run runs the check. ErrNotServed means that the front cannot serve the service.
func (k ClientCheck) Run(ctx context.Context, f *Farm, front Front) error {
	target, err := front.Target(f, k.Service, k.V6)
	if err != nil {
		return err
	}
	if err := need(k.Program); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(f.dir, "check-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // the farm's directory goes later
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return k.run(ctx, &checking{farm: f, target: target, dir: dir})
}

// ClientChecks are all checks.
func ClientChecks() []ClientCheck {
	return []ClientCheck{
		{Name: "curl-http", Program: "curl", Service: Files, run: fetchWho(NginxHost, "http", "/who")},
		{Name: "curl-http-v6", Program: "curl", Service: Files, V6: true, run: fetchWho(NginxHost, "http", "/who")},
		{Name: "curl-path", Program: "curl", Service: Linked, run: fetchWho(LinkedHost, "http", LinkedPath+"who")},
		{Name: "curl-path-v6", Program: "curl", Service: Linked, V6: true, run: fetchWho(LinkedHost, "http", LinkedPath+"who")},
		{Name: "curl-download", Program: "curl", Service: Files, run: download("http", ShopName, "/noise")},
		{Name: "curl-download-linked", Program: "curl", Service: Linked, run: download("http", ShopName, LinkedPath+"noise")},
		{Name: "curl-upload-linked", Program: "curl", Service: Linked, run: upload},
		{Name: "curl-large-head", Program: "curl", Service: Files, run: largeHead},
		{Name: "curl-kept", Program: "curl", Service: Files, run: kept},
		{Name: "curl-https", Program: "curl", Service: Shop, run: fetchWho(NginxHost, "https", "/who", "--http1.1")},
		{Name: "curl-https-v6", Program: "curl", Service: Shop, V6: true, run: fetchWho(NginxHost, "https", "/who", "--http1.1")},
		{Name: "curl-https-h2", Program: "curl", Service: Shop, run: fetchWho(NginxHost, "https", "/who", "--http2")},
		{Name: "curl-https-other-name", Program: "curl", Service: Vault, run: fetchWho(MixedHost, "https", "/who")},
		{Name: "curl-https-download", Program: "curl", Service: Vault, run: download("https", VaultName, "/noise")},
		{Name: "curl-h2c", Program: "curl", Service: Clear, run: fetchWho(NginxHost, "http", "/who", "--http2-prior-knowledge")},
		{Name: "wrk-kept", Program: "wrk", Service: Files, run: load()},
		{Name: "wrk-close", Program: "wrk", Service: Files, run: load("--header", "Connection: close")},
		{Name: "openssl", Program: "openssl", Service: Vault, run: handshake},
		{Name: "redis-cli", Program: "redis-cli", Service: Store, run: redisPing},
		{Name: "redis-cli-values", Program: "redis-cli", Service: Store, run: redisValues},
		{Name: "redis-cli-v6", Program: "redis-cli", Service: Store, V6: true, run: redisPing},
	}
}

// checking is one check under way.
type checking struct {
	farm   *Farm
	target netip.AddrPort
	dir    string // the check's own, for files
}

// command runs a program at the client and returns what it wrote.
func (c *checking) command(ctx context.Context, stdin, name string, args ...string) (string, error) {
	cmd := c.farm.Client().Command(ctx, name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return string(out), fmt.Errorf("%s: %w: %s%s", name, err, out, stderr.Bytes())
	}
	return string(out), nil
}

// curl runs curl for a URL of a host name, which it takes for the target.
func (c *checking) curl(ctx context.Context, scheme, host, path string, args ...string) (string, error) {
	url := fmt.Sprintf("%s://%s:%d%s", scheme, host, c.target.Port(), path)
	common := []string{
		"--silent", "--show-error", "--fail", "--noproxy", "*", "--cacert", c.farm.authority.path(),
		"--resolve", fmt.Sprintf("%s:%d:%s", host, c.target.Port(), bracketed(c.target.Addr())),
	}
	return c.command(ctx, "", "curl", append(append(common, args...), url)...)
}

func bracketed(a netip.Addr) string {
	if a.Is6() {
		return "[" + a.String() + "]"
	}
	return a.String()
}

// fetchWho asks which host answers.
func fetchWho(want, scheme, path string, args ...string) func(context.Context, *checking) error {
	name := ShopName
	if want == MixedHost {
		name = VaultName
	}
	return func(ctx context.Context, c *checking) error {
		out, err := c.curl(ctx, scheme, name, path, args...)
		if err != nil {
			return err
		}
		return same(out, want+"\n")
	}
}

// download compares a file byte by byte, by its sum.
func download(scheme, name, path string) func(context.Context, *checking) error {
	return func(ctx context.Context, c *checking) error {
		out, err := c.curl(ctx, scheme, name, path)
		if err != nil {
			return err
		}
		want, err := noiseSum(c.farm.Noise)
		if err != nil {
			return err
		}
		if got := sha256.Sum256([]byte(out)); got != want {
			return fmt.Errorf("%d bytes came, and they differ", len(out))
		}
		return nil
	}
}

// upload puts a file and compares the sum that the demo server answers.
func upload(ctx context.Context, c *checking) error {
	file := filepath.Join(c.dir, "upload")
	if err := writeNoise(file, c.farm.Noise); err != nil {
		return err
	}
	want, err := noiseSum(c.farm.Noise)
	if err != nil {
		return err
	}
	out, err := c.curl(ctx, "http", ShopName, LinkedPath+"upload", "--upload-file", file)
	if err != nil {
		return err
	}
	return same(out, fmt.Sprintf("%x\n", want))
}

func noiseSum(n netnslab.Noise) (sum [32]byte, err error) { return n.WriteSum(io.Discard) }

// largeHead sends a request's head that no single segment holds.
func largeHead(ctx context.Context, c *checking) error {
	out, err := c.curl(ctx, "http", ShopName, "/who", "--header", "Cookie: a="+strings.Repeat("x", 6000))
	if err != nil {
		return err
	}
	return same(out, NginxHost+"\n")
}

// kept sends several requests on one connection.
func kept(ctx context.Context, c *checking) error {
	out, err := c.curl(ctx, "http", ShopName, "/[1-9]", "--request-target", "/who", "--output", "/dev/null", "--write-out", "%{num_connects} ")
	if err != nil {
		return err
	}
	return same(strings.TrimSpace(out), "1 0 0 0 0 0 0 0 0")
}

// load lets wrk work for a second.
func load(args ...string) func(context.Context, *checking) error {
	return func(ctx context.Context, c *checking) error {
		all := append([]string{"--threads", "1", "--connections", "8", "--duration", "1s", "--header", "Host: " + ShopName}, args...)
		out, err := c.command(ctx, "", "wrk", append(all, fmt.Sprintf("http://%v/small", c.target))...)
		if err != nil {
			return err
		}
		l, err := parseWrk(strings.NewReader(out))
		if err != nil {
			return err
		}
		if l.Failed() > 0 || l.Requests == 0 {
			return fmt.Errorf("%d of %d requests failed: %s", l.Failed(), l.Requests, out)
		}
		return nil
	}
}

// handshake lets openssl verify a server's certificate and ask a question.
func handshake(ctx context.Context, c *checking) error {
	out, err := c.command(ctx, "GET /who HTTP/1.1\r\nHost: "+VaultName+"\r\nConnection: close\r\n\r\n", "openssl", "s_client",
		"-connect", c.target.String(), "-servername", VaultName, "-verify_hostname", VaultName, "-verify_return_error",
		"-CAfile", c.farm.authority.path(), "-ign_eof")
	if err != nil {
		return err
	}
	for _, want := range []string{"Verification: OK", "HTTP/1.1 200 OK", "\n" + MixedHost + "\n"} {
		if !strings.Contains(out, want) {
			return fmt.Errorf("want %q in %q", want, out)
		}
	}
	return nil
}

func (c *checking) redis(ctx context.Context, stdin string, args ...string) (string, error) {
	where := []string{"-h", c.target.Addr().String(), "-p", fmt.Sprint(c.target.Port())}
	return c.command(ctx, stdin, "redis-cli", append(where, args...)...)
}

func redisPing(ctx context.Context, c *checking) error {
	out, err := c.redis(ctx, "", "PING")
	if err != nil {
		return err
	}
	return same(out, "PONG\n")
}

// redisValues has a conversation: the connection goes on after its first request.
func redisValues(ctx context.Context, c *checking) error {
	out, err := c.redis(ctx, "SET rehome-check 1\nINCR rehome-check\nGET rehome-check\nDEL rehome-check\n")
	if err != nil {
		return err
	}
	return same(out, "OK\n2\n2\n1\n")
}

func same(got, want string) error {
	if got != want {
		return fmt.Errorf("got %q, want %q", got, want)
	}
	return nil
}
