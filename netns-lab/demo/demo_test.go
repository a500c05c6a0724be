// SPDX-License-Identifier: Apache-2.0

package demo_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/websocket"

	"github.com/rehome-net/rehome/netns-lab/demo"
)

// freeAddress returns an address on loopback that nobody listens at.
func freeAddress(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

// serve runs the demo server without an agent.
func serve(t *testing.T) (files, echo, root string) {
	t.Helper()
	cfg := demo.Config{Files: freeAddress(t), Echo: freeAddress(t), Root: t.TempDir(), Agent: filepath.Join(t.TempDir(), "none")}
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- demo.Serve(ctx, cfg, func() { close(ready) }) }()
	select {
	case <-ready:
	case err := <-done:
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return cfg.Files, cfg.Echo, cfg.Root
}

func TestFiles(t *testing.T) {
	files, _, root := serve(t)
	content := bytes.Repeat([]byte("0123456789abcdef"), 20000)
	if err := os.WriteFile(filepath.Join(root, "f"), content, 0o600); err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	for range 2 { // the second time over the same connection
		resp, err := client.Get("http://" + files + "/f")
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err != nil || !bytes.Equal(got, content) {
			t.Errorf("%d bytes, %v", len(got), err)
		}
	}
	req, err := http.NewRequest(http.MethodPut, "http://"+files+"/up", bytes.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	got, _ := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	if want := fmt.Sprintf("%x\n", sha256.Sum256(content)); string(got) != want {
		t.Errorf("upload: %q, want %q", got, want)
	}
	for path, want := range map[string]int{"/none": 404, "/../../etc/passwd": 404, "/": 404} {
		resp, err := client.Get("http://" + files + path)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%s: %s", path, resp.Status)
		}
	}
}

func TestEcho(t *testing.T) {
	_, echo, _ := serve(t)
	conn, err := net.Dial("tcp", echo)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(conn, "hello"); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 5)
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != "hello" {
		t.Errorf("%q %v", got, err)
	}
}

func TestWebSocket(t *testing.T) {
	files, _, _ := serve(t)
	ws, err := websocket.Dial("ws://"+files+"/chat", "", "http://"+files)
	if err != nil {
		t.Fatal(err)
	}
	defer ws.Close()
	_ = ws.SetDeadline(time.Now().Add(20 * time.Second))
	for _, n := range []int{0, 1, 125, 126, 5000, 64 << 10} {
		want := strings.Repeat("x", n)
		var got string
		if err := websocket.Message.Send(ws, want); err != nil {
			t.Fatal(err)
		}
		if err := websocket.Message.Receive(ws, &got); err != nil || got != want {
			t.Errorf("message of %d bytes: %d came back, %v", n, len(got), err)
		}
	}
	if err := websocket.Message.Send(ws, strings.Repeat("x", 65<<10)); err == nil {
		var got string
		if err := websocket.Message.Receive(ws, &got); err == nil {
			t.Error("a message above the bound came back")
		}
	}
}

func TestNothingToServe(t *testing.T) {
	if err := demo.Serve(context.Background(), demo.Config{}, nil); err == nil {
		t.Error("served nothing")
	}
}
