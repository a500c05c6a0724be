// SPDX-License-Identifier: Apache-2.0

package health

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Kind is how a backend is asked.
type Kind string

// Kinds.
const (
	// TCP connects.
	TCP Kind = "tcp"
	// HTTP asks for a page.
	HTTP Kind = "http"
	// TLS shakes hands.
	TLS Kind = "tls"
	// UDP sends a datagram and waits for one.
	UDP Kind = "udp"
	// Script runs a program: exit status 0 means well.
	Script Kind = "script"
)

const (
	maxBody   = 64 << 10
	maxReply  = 64 << 10
	maxOutput = 4 << 10
)

// Dialer reaches a backend; network is "tcp" or "udp". *net.Dialer's DialContext is one.
type Dialer func(ctx context.Context, network, address string) (net.Conn, error)

// Prober asks a backend once. nil means that it serves. The context has a deadline.
type Prober interface {
	Probe(ctx context.Context, dial Dialer, address netip.AddrPort) error
}

// ProbeConfig says how a backend is asked. Kind is required.
type ProbeConfig struct {
	Kind Kind
	// Path is what HTTP asks for; / when empty. Host is the request's host, and the server name of TLS; the address when empty.
	Path, Host string
	// Status are the first and the last status of HTTP that is well; 200 to 399 when 0. Redirects are not followed.
	Status [2]int
	// Body must stand in the first 64 KiB of HTTP's answer.
	Body string
	// Verify has TLS verify the certificate for Host by the system's authorities. Without, any will do: the question is whether somebody answers.
	Verify bool
	// Send and Receive are for UDP, and for TCP, where both may be empty. A datagram must come back; if Receive is set it must begin the
	// answer.
	Send, Receive []byte
	// Command is Script's program with its arguments; it also gets REHOME_CHECK_ADDRESS and REHOME_CHECK_PORT in its environment. It runs in the
	// dispatcher's own network namespace.
	Command []string
}

func (c ProbeConfig) validate() error {
	switch c.Kind {
	case HTTP:
		if !strings.HasPrefix(c.Path, "/") || strings.ContainsAny(c.Path, " \r\n") {
			return fmt.Errorf("path: %q: want one that begins with /", c.Path)
		}
		if c.Status[0] < 100 || c.Status[1] > 599 || c.Status[0] > c.Status[1] {
			return fmt.Errorf("status: %d to %d: want 100 to 599", c.Status[0], c.Status[1])
		}
	case UDP:
		if len(c.Send) == 0 {
			return errors.New("send: missing: nobody answers a datagram that says nothing")
		}
	case Script:
		if len(c.Command) == 0 || !filepath.IsAbs(c.Command[0]) {
			return errors.New("command: want the absolute path of a program")
		}
	case TLS:
		if c.Verify && c.Host == "" {
			return errors.New("host: missing: the certificate is verified for it")
		}
	case TCP:
	default:
		return fmt.Errorf("kind %q: want %s, %s, %s, %s or %s", c.Kind, TCP, HTTP, TLS, UDP, Script)
	}
	return nil
}

// NewProber returns the prober that the configuration asks for, or an error that says what is wrong with it.
func NewProber(config ProbeConfig) (Prober, error) {
	if config.Path == "" {
		config.Path = "/"
	}
	if config.Status == [2]int{} {
		config.Status = [2]int{200, 399}
	}
	if err := config.validate(); err != nil {
		return nil, err
	}
	probes := map[Kind]func(context.Context, ProbeConfig, Dialer, netip.AddrPort) error{
		TCP: probeTCP, HTTP: probeHTTP, TLS: probeTLS, UDP: probeUDP, Script: probeScript,
	}
	return &prober{config, probes[config.Kind]}, nil
}

type prober struct {
	cfg   ProbeConfig
	probe func(ctx context.Context, c ProbeConfig, dial Dialer, address netip.AddrPort) error
}

// Probe implements Prober.
func (p *prober) Probe(ctx context.Context, dial Dialer, address netip.AddrPort) error {
	if err := p.probe(ctx, p.cfg, dial, address); err != nil {
		return fmt.Errorf("%s: %w", p.cfg.Kind, err)
	}
	return nil
}

// connect dials, and has the connection end with the context.
func connect(ctx context.Context, dial Dialer, network string, address netip.AddrPort) (conn net.Conn, done func(), err error) {
	if conn, err = dial(ctx, network, address.String()); err != nil {
		return nil, nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	return conn, func() {
		stop()
		_ = conn.Close()
	}, nil
}

func probeTCP(ctx context.Context, c ProbeConfig, dial Dialer, address netip.AddrPort) error {
	conn, done, err := connect(ctx, dial, "tcp", address)
	if err != nil {
		return err
	}
	defer done()
	if _, err := conn.Write(c.Send); err != nil {
		return err
	}
	got := make([]byte, len(c.Receive))
	if _, err := io.ReadFull(conn, got); err != nil {
		return err
	}
	return compare(got, c.Receive)
}

func compare(got, want []byte) error {
	if !bytes.HasPrefix(got, want) {
		return fmt.Errorf("the answer begins with %.60q, want %.60q", got, want)
	}
	return nil
}

func probeUDP(ctx context.Context, c ProbeConfig, dial Dialer, address netip.AddrPort) error {
	conn, done, err := connect(ctx, dial, "udp", address)
	if err != nil {
		return err
	}
	defer done()
	if _, err := conn.Write(c.Send); err != nil {
		return err
	}
	b := make([]byte, maxReply)
	n, err := conn.Read(b)
	if err != nil {
		return err
	}
	return compare(b[:n], c.Receive)
}

func probeTLS(ctx context.Context, c ProbeConfig, dial Dialer, address netip.AddrPort) error {
	conn, done, err := connect(ctx, dial, "tcp", address)
	if err != nil {
		return err
	}
	defer done()
	// Without Verify the question is whether somebody answers; nothing is sent that would need the server's identity.
	config := &tls.Config{ServerName: c.Host, InsecureSkipVerify: !c.Verify} //nolint:gosec // see above
	client := tls.Client(conn, config)
	if err := client.HandshakeContext(ctx); err != nil {
		return err
	}
	return client.Close()
}

func probeHTTP(ctx context.Context, c ProbeConfig, dial Dialer, address netip.AddrPort) error {
	host := c.Host
	if host == "" {
		host = address.String()
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address.String()+c.Path, nil)
	if err != nil {
		return err
	}
	r.Host, r.Close = host, true
	r.Header.Set("User-Agent", "rehome-health")
	transport := &http.Transport{DialContext: dial, DisableKeepAlives: true}
	defer transport.CloseIdleConnections()
	answer, err := transport.RoundTrip(r) // follows no redirect
	if err != nil {
		return err
	}
	defer answer.Body.Close() //nolint:errcheck // read only
	if answer.StatusCode < c.Status[0] || answer.StatusCode > c.Status[1] {
		return fmt.Errorf("status %d, want %d to %d", answer.StatusCode, c.Status[0], c.Status[1])
	}
	if c.Body == "" {
		return nil
	}
	body, err := io.ReadAll(io.LimitReader(answer.Body, maxBody))
	if err != nil {
		return err
	}
	if !bytes.Contains(body, []byte(c.Body)) {
		return fmt.Errorf("%.60q does not stand in the answer", c.Body)
	}
	return nil
}

func probeScript(ctx context.Context, c ProbeConfig, _ Dialer, address netip.AddrPort) error {
	cmd := exec.CommandContext(ctx, c.Command[0], c.Command[1:]...) //nolint:gosec // the operator's
	cmd.Env = append(cmd.Environ(),
		"REHOME_CHECK_ADDRESS="+address.Addr().String(), fmt.Sprintf("REHOME_CHECK_PORT=%d", address.Port()))
	// What the script has started ends with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	var out head
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return fmt.Errorf("%w: %.200q", err, bytes.TrimSpace(out.b))
	}
	return nil
}

// head keeps the beginning of what is written.
type head struct{ b []byte }

func (h *head) Write(b []byte) (int, error) {
	h.b = append(h.b, b[:min(len(b), maxOutput-len(h.b))]...)
	return len(b), nil
}
