// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rehome-net/rehome/dispatcher/peek"
	"github.com/rehome-net/rehome/handoff/migration"
)

func netipAddress(t *testing.T, p PeerConfig) netip.AddrPort {
	t.Helper()
	a, err := netip.ParseAddrPort(p.Address)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// ending ends the dispatcher in the background.
func (s *stand) ending() <-chan error {
	done := make(chan error, 1)
	go func() { done <- s.quit() }()
	return done
}

// listening reports whether any worker still accepts.
func (s *stand) listening(t *testing.T, at netip.AddrPort) bool {
	t.Helper()
	c, err := net.DialTimeout("tcp", at.String(), limit)
	if err != nil {
		return false
	}
	_ = c.Close()
	return true
}

// TestStopServesWhoIsThere lets somebody finish a request after the dispatcher was told to end.
func TestStopServesWhoIsThere(t *testing.T) {
	cfg := standing(t)
	s := start(t, cfg)
	at := cfg.Services[0].Addresses[0]
	waiting := visit(t, at, "shop.example")
	until(t, "the dispatcher looks", func() bool { return s.live.Load().peeking() == 1 })
	done := s.ending()
	until(t, "nothing is accepted", func() bool { return !s.listening(t, at) })
	time.Sleep(stopPeekTime / 4) // a slow client
	if got, err := waiting.answer(); err != nil || got != "shop" {
		t.Errorf("who was there got %q %v", got, err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestStopWaitsForHandoffs does so, and not for longer than it may.
func TestStopWaitsForHandoffs(t *testing.T) {
	for _, tt := range []struct {
		name     string
		ends     bool
		at, most time.Duration
		warning  string
	}{
		{"one that ends", true, 300 * time.Millisecond, 2 * time.Second, ""},
		{"one that never does", false, stopTime, stopTime + 2*time.Second, "being handed off"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := standing(t)
			s := start(t, cfg)
			b := s.backend("b1")
			b.mu.Lock()
			b.attempts[1] = &attempt{
				c: &dispatched{d: s.Dispatcher, pool: s.live.Load().pools["files"]}, giver: migration.NewGiver(time.Minute, graceTime, false),
			}
			b.mu.Unlock()
			begin := time.Now()
			done := s.ending()
			until(t, "nothing is accepted", func() bool { return !s.listening(t, cfg.Services[0].Addresses[0]) })
			if tt.ends {
				time.AfterFunc(tt.at, func() { b.end(1) })
			}
			if err := <-done; err != nil {
				t.Error(err)
			}
			if took := time.Since(begin); took < tt.at || took > tt.most {
				t.Errorf("the end took %v, want %v to %v", took, tt.at, tt.most)
			}
			if text := s.logs.String(); strings.Contains(text, "being handed off") != (tt.warning != "") {
				t.Errorf("want %q in the log:\n%s", tt.warning, text)
			}
		})
	}
}

// TestStopIgnoresTheSilent does not wait for clients that ask nothing.
func TestStopIgnoresTheSilent(t *testing.T) {
	cfg := standing(t)
	s := start(t, cfg)
	for range 20 {
		visit(t, cfg.Services[0].Addresses[0], "x.example")
	}
	until(t, "the dispatcher looks", func() bool { return s.live.Load().peeking() == 20 })
	begin := time.Now()
	if err := s.quit(); err != nil {
		t.Error(err)
	}
	if took := time.Since(begin); took > stopTime-time.Second {
		t.Errorf("silent clients delay the end by %v", took)
	}
}

// TestStopAnswersTheRefused lets a client read that nobody takes it, when the last attempt to hand it off fails at the end.
func TestStopAnswersTheRefused(t *testing.T) {
	cfg := standing(t)
	s := start(t, cfg)
	b := s.backend("b1")
	held := make(chan *peeking, 1)
	for _, w := range s.workers {
		if err := w.do(t.Context(), func() {
			w.found = func(p *peeking, _ peek.Key) {
				b.mu.Lock()
				b.attempts[1] = &attempt{
					c: &dispatched{d: s.Dispatcher, pool: s.live.Load().pools["files"]}, giver: migration.NewGiver(time.Minute, graceTime, false),
				}
				b.mu.Unlock()
				held <- p
			}
		}); err != nil {
			t.Fatal(err)
		}
	}
	client := visit(t, cfg.Services[0].Addresses[0], "shop.example")
	answers := make(chan error, 1)
	go func() {
		_, err := client.answer()
		answers <- err
	}()
	p := <-held
	done := s.ending()
	until(t, "nothing is accepted", func() bool { return !s.listening(t, cfg.Services[0].Addresses[0]) })
	time.Sleep(stopPeekTime / 4) // the end waits for this handoff alone
	s.refuse(&dispatched{d: s.Dispatcher, fd: p.fd, service: p.service, flow: p.flow}, []byte("HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n"))
	b.end(1)
	if err := <-answers; err != nil {
		t.Errorf("the client read %v", err)
	}
	select {
	case err := <-done:
		t.Fatalf("it did not wait for the client to go: %v", err)
	case <-time.After(lingerTime / 3):
	}
	_ = client.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestNotify listens to what the service manager is told.
func TestNotify(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	s := start(t, standing(t))
	told := func(want string) {
		t.Helper()
		_ = conn.SetReadDeadline(time.Now().Add(limit))
		buffer := make([]byte, 256)
		n, err := conn.Read(buffer)
		if got := string(buffer[:n]); err != nil || !strings.HasPrefix(got, want) {
			t.Errorf("told %q %v, want %q", got, err, want)
		}
	}
	told("READY=1")
	if err := s.ReloadFile(t.Context()); err == nil {
		t.Error("reloaded from nowhere")
	}
	told("RELOADING=1\nMONOTONIC_USEC=")
	told("READY=1") // also after a failure: it serves
	if err := s.quit(); err != nil {
		t.Error(err)
	}
	told("STOPPING=1")
}
