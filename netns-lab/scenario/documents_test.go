// SPDX-License-Identifier: Apache-2.0

package scenario_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/rehome-net/rehome/agent"
	netnslab "github.com/rehome-net/rehome/netns-lab"
	"github.com/rehome-net/rehome/netns-lab/demo"
	"github.com/rehome-net/rehome/netns-lab/scenario"
)

// examplePort is where docs/examples/fileserver listens.
const examplePort = 7000

// TestExampleServer runs the server that docs/server-developers.md prints: a download moves again and again, and arrives whole.
func TestExampleServer(t *testing.T) {
	t.Parallel()
	binary(t)
	need(t, "unshare")
	if _, err := os.Stat("/srv"); err != nil {
		t.Skip("the example serves /srv, which this machine does not have")
	}
	root := t.TempDir()
	content := make([]byte, 32<<20)
	if _, err := (netnslab.Noise{Seed: 5, Size: int64(len(content))}).ReadAt(content, 0); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "file"), content, 0o600); err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(t.TempDir(), "fileserver")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", program, "../../docs/examples/fileserver").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	s := standWith(t, "example", scenario.ClusterConfig{NoServers: true, Adjust: func(cfg *agent.Config) {
		for i := range cfg.Services {
			if v := &cfg.Services[i]; v.Name == demo.FilesService {
				for j, a := range v.Addresses {
					v.Addresses[j] = netip.AddrPortFrom(a.Addr(), examplePort)
				}
			}
		}
	}})
	for _, name := range s.Servers() {
		s.startExample(t, name, root, program)
	}
	ctx := testContext(t, time.Minute)
	var conn net.Conn
	for conn == nil { // until one of them listens
		var err error
		if conn, err = s.client.Dial(ctx, "tcp", netip.AddrPortFrom(s.vip, examplePort).String()); err != nil && ctx.Err() != nil {
			t.Fatal(err)
		}
	}
	defer conn.Close()
	if _, err := fmt.Fprintln(conn, "file"); err != nil {
		t.Fatal(err)
	}
	moves := s.moveWhile(t, func() error {
		var got bytes.Buffer
		piece := make([]byte, 256<<10)
		_ = conn.SetDeadline(time.Now().Add(50 * time.Second))
		for {
			n, err := conn.Read(piece)
			got.Write(piece[:n])
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return err
			}
			time.Sleep(3 * time.Millisecond) // or it is over before it has moved
		}
		if !bytes.Equal(got.Bytes(), content) {
			return fmt.Errorf("%d bytes arrived, which are not the file's %d", got.Len(), len(content))
		}
		return nil
	})
	atLeast(t, moves, 3)
}

// startExample starts the example server on a host, where /srv is root, and waits until it is registered.
func (s *standing) startExample(t *testing.T, name, root, program string) {
	t.Helper()
	h, err := s.Lab.Host(name)
	if err != nil {
		t.Fatal(err)
	}
	cmd := h.Command(context.Background(), "unshare", "--mount", "--kill-child", "sh", "-c", `mount --bind "$1" /srv && exec "$2"`, "sh", root, program)
	cmd.Env = append(os.Environ(), "REHOME_AGENT_SOCKET="+scenario.AgentSocket(s.Lab.Topology().Name, name))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
	})
	s.awaitApplications(testContext(t, 20*time.Second), t, name)
}
