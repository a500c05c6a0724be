// SPDX-License-Identifier: Apache-2.0

package health

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rehome-net/rehome/netns-lab/leakcheck"
)

func TestMain(m *testing.M) { os.Exit(leakcheck.Main(m, leakcheck.Config{})) }

const patience = 5 * time.Second

func direct() Dialer { return (&net.Dialer{}).DialContext }

func addressOf(a net.Addr) netip.AddrPort { return netip.MustParseAddrPort(a.String()) }

func newProber(t testing.TB, c ProbeConfig) Prober {
	t.Helper()
	p, err := NewProber(c)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// serveTCP accepts connections and lets f answer.
func serveTCP(t *testing.T, f func(net.Conn)) netip.AddrPort {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(patience))
				f(c)
			}()
		}
	}()
	return addressOf(ln.Addr())
}

// closedPort is one that nobody listens at.
func closedPort(t *testing.T) netip.AddrPort {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return addressOf(ln.Addr())
}

func web(t *testing.T, secure bool) netip.AddrPort {
	t.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, "%s: all is well", r.Host) })
	mux.HandleFunc("/ill", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) })
	mux.HandleFunc("/moved", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/ill", http.StatusFound) })
	mux.HandleFunc("/slow", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	s := httptest.NewUnstartedServer(mux)
	if secure {
		s.StartTLS()
	} else {
		s.Start()
	}
	t.Cleanup(s.Close)
	return addressOf(s.Listener.Addr())
}

func TestProbes(t *testing.T) {
	const unheard = 300 * time.Millisecond // for those that wait in vain
	silent := serveTCP(t, func(c net.Conn) { _, _ = c.Read(make([]byte, 1000)); _, _ = c.Read(make([]byte, 1000)) })
	greeting := serveTCP(t, func(c net.Conn) { fmt.Fprint(c, "220 welcome\r\n"); _, _ = c.Read(make([]byte, 1)) })
	page, secure, closed := web(t, false), web(t, true), closedPort(t)
	for _, tt := range []struct {
		name   string
		config ProbeConfig
		at     netip.AddrPort
		want   string // of the error; empty: well
		limit  time.Duration
	}{
		{"tcp", ProbeConfig{Kind: TCP}, silent, "", patience / 2},
		{"tcp, refused", ProbeConfig{Kind: TCP}, closed, "connection refused", patience / 2},
		{"tcp, greeting", ProbeConfig{Kind: TCP, Receive: []byte("220")}, greeting, "", patience / 2},
		{"tcp, another greeting", ProbeConfig{Kind: TCP, Receive: []byte("+OK")}, greeting, `begins with "220", want "+OK"`, patience / 2},
		{"tcp, no greeting", ProbeConfig{Kind: TCP, Send: []byte("hi"), Receive: []byte("220")}, silent, "tcp:", unheard},
		{"http", ProbeConfig{Kind: HTTP, Path: "/healthz"}, page, "", patience / 2},
		{"http, body", ProbeConfig{Kind: HTTP, Path: "/healthz", Host: "www.example.org", Body: "www.example.org: all"}, page, "", patience / 2},
		{"http, another body", ProbeConfig{Kind: HTTP, Path: "/healthz", Body: "bad"}, page, "does not stand in the answer", patience / 2},
		{"http, 503", ProbeConfig{Kind: HTTP, Path: "/ill"}, page, "status 503, want 200 to 399", patience / 2},
		{"http, 503 is well", ProbeConfig{Kind: HTTP, Path: "/ill", Status: [2]int{503, 503}}, page, "", patience / 2},
		{"http, redirect", ProbeConfig{Kind: HTTP, Path: "/moved"}, page, "", patience / 2},
		{"http, slow", ProbeConfig{Kind: HTTP, Path: "/slow"}, page, "deadline", unheard},
		{"http, silence", ProbeConfig{Kind: HTTP}, silent, "http:", unheard},
		{"tls", ProbeConfig{Kind: TLS, Host: "www.example.org"}, secure, "", patience / 2},
		{"tls, unknown authority", ProbeConfig{Kind: TLS, Host: "example.com", Verify: true}, secure, "certificate", patience / 2},
		{"tls, none", ProbeConfig{Kind: TLS}, page, "tls:", patience / 2},
		{"tls, silence", ProbeConfig{Kind: TLS}, silent, "tls:", unheard},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), tt.limit)
		begin := time.Now()
		err := newProber(t, tt.config).Probe(ctx, direct(), tt.at)
		cancel()
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
		if took := time.Since(begin); took > patience/2 {
			t.Errorf("%s: took %v", tt.name, took)
		}
	}
}

func TestProbeUDP(t *testing.T) {
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	go func() {
		b := make([]byte, 100)
		for {
			n, from, err := conn.ReadFrom(b)
			if err != nil {
				return
			}
			if string(b[:n]) == "ping" {
				_, _ = conn.WriteTo([]byte("pong 1"), from)
			}
		}
	}()
	for _, tt := range []struct {
		send, receive, want string
	}{
		{"ping", "", ""},
		{"ping", "pong", ""},
		{"ping", "gong", `begins with "pong 1"`},
		{"hello", "", "udp:"},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		err := newProber(t, ProbeConfig{Kind: UDP, Send: []byte(tt.send), Receive: []byte(tt.receive)}).Probe(ctx, direct(), addressOf(conn.LocalAddr()))
		cancel()
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.send, err, tt.want)
		}
	}
}

func TestProbeScript(t *testing.T) {
	dir := t.TempDir()
	at := netip.MustParseAddrPort("192.0.2.1:80")
	for _, tt := range []struct{ name, body, want string }{
		{"well", `test "$REHOME_CHECK_ADDRESS $REHOME_CHECK_PORT $1" = "192.0.2.1 80 x"`, ""},
		{"ill", "echo the database is gone; exit 3", `exit status 3: "the database is gone"`},
		{"talks", "yes | head -c 1000000; exit 1", "exit status 1"},
		{"hangs, with a child", "sleep 1000 & wait", "deadline exceeded"},
	} {
		path := filepath.Join(dir, strings.ReplaceAll(tt.name, " ", "-"))
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"+tt.body+"\n"), 0o700); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		begin := time.Now()
		err := newProber(t, ProbeConfig{Kind: Script, Command: []string{path, "x"}}).Probe(ctx, nil, at)
		cancel()
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
		if took := time.Since(begin); took > patience/2 {
			t.Errorf("%s: took %v", tt.name, took)
		}
	}
}

func TestProbeConfig(t *testing.T) {
	for want, c := range map[string]ProbeConfig{
		`kind ""`:                      {},
		`kind "icmp": want tcp, http`:  {Kind: "icmp"},
		`path: "x"`:                    {Kind: HTTP, Path: "x"},
		`path: "/ x`:                   {Kind: HTTP, Path: "/ x"},
		"status: 300 to 200":           {Kind: HTTP, Status: [2]int{300, 200}},
		"send: missing":                {Kind: UDP},
		"command: want the absolute":   {Kind: Script, Command: []string{"true"}},
		"host: missing: the certifica": {Kind: TLS, Verify: true},
	} {
		if _, err := NewProber(c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", c, err, want)
		}
	}
}

// health is a Prober whose answer the test sets.
type health struct {
	answers chan error
	probes  chan netip.AddrPort
}

func newHealth() *health {
	return &health{answers: make(chan error), probes: make(chan netip.AddrPort, 1000)}
}

func (h *health) Probe(ctx context.Context, _ Dialer, at netip.AddrPort) error {
	h.probes <- at
	select {
	case err := <-h.answers:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// TestChecker: targets are probed, changes told, and a new list keeps the states.
func TestChecker(t *testing.T) {
	changes := make(chan Change, 100)
	c := NewChecker(CheckerConfig{Changed: func(e Change) { changes <- e }})
	h := newHealth()
	at, elsewhere := netip.MustParseAddrPort("192.0.2.1:80"), netip.MustParseAddrPort("192.0.2.2:80")
	config := CheckConfig{Interval: 10 * time.Millisecond, Timeout: 100 * time.Millisecond, Fall: 2}
	target := Target{Name: "web/b1", Address: at, Prober: h, Check: config}
	if err := c.SetTargets([]Target{target}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- c.Run(ctx) }()
	next := func() Change {
		t.Helper()
		select {
		case e := <-changes:
			return e
		case <-time.After(patience):
			t.Fatal("no change")
			return Change{}
		}
	}
	h.answers <- nil
	if e := next(); e.Target != "web/b1" || e.From != Unknown || e.To != Up {
		t.Errorf("%+v", e)
	}
	ill := errors.New("ill")
	h.answers <- ill
	h.answers <- ill
	if e := next(); e.To != Down || !errors.Is(e.Err, ill) {
		t.Errorf("%+v", e)
	}
	if s, err := c.State("web/b1"); s != Down || !errors.Is(err, ill) {
		t.Errorf("%v, %v", s, err)
	}
	// The same target elsewhere is what it was; the probe that was under way does not count.
	target.Address = elsewhere
	if err := c.SetTargets([]Target{target}); err != nil {
		t.Fatal(err)
	}
	if s, _ := c.State("web/b1"); s != Down {
		t.Errorf("%v after a new list", s)
	}
	for at := range h.probes {
		if at == elsewhere {
			break
		}
	}
	h.answers <- nil
	h.answers <- nil
	if e := next(); e.To != Up {
		t.Errorf("%+v", e)
	}
	// Nobody answers: two timeouts.
	if e := next(); e.To != Down || !errors.Is(e.Err, errTimeout) {
		t.Errorf("%+v", e)
	}
	if err := c.SetTargets(nil); err != nil {
		t.Fatal(err)
	}
	if s, err := c.State("web/b1"); s != Unknown || err != nil {
		t.Errorf("%v, %v of a target that is none", s, err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestSetTargetsRefuses(t *testing.T) {
	c := NewChecker(CheckerConfig{})
	good := Target{Name: "a", Address: netip.MustParseAddrPort("192.0.2.1:80"), Prober: newHealth()}
	for want, targets := range map[string][]Target{
		"check of a: the name stands twice": {good, good},
		"check of b: prober and address":    {good, {Name: "b", Address: good.Address}},
		"check of c: prober and address":    {{Name: "c", Prober: good.Prober}},
		"check of d: interval":              {{Name: "d", Address: good.Address, Prober: good.Prober, Check: CheckConfig{Interval: -1}}},
	} {
		if err := c.SetTargets(targets); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	if s, _ := c.State("a"); s != Unknown || len(c.watches) != 0 {
		t.Error("a refused list is in force")
	}
}
