// SPDX-License-Identifier: Apache-2.0

package scenario_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/agent"
	"github.com/rehome-net/rehome/dispatcher"
	netnslab "github.com/rehome-net/rehome/netns-lab"
	"github.com/rehome-net/rehome/netns-lab/demo"
	"github.com/rehome-net/rehome/netns-lab/scenario"
)

// refuseBPF as first argument has this program's tests become another program, to which the kernel refuses bpf(2).
const refuseBPF = "refuse-bpf"

// withoutBPF returns rehome's command in which every bpf(2) is EPERM, as on a machine that allows nobody to use it.
func withoutBPF(t testing.TB) []string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return append([]string{self, refuseBPF}, binary(t)...)
}

// execWithoutBPF replaces this process. It returns only if that fails.
func execWithoutBPF(command []string) error {
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS}, // struct seccomp_data begins with the system call's number
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_BPF, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	const thisThread = 0
	if _, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, thisThread, uintptr(unsafe.Pointer(&program))); errno != 0 {
		return errno
	}
	path, err := exec.LookPath(command[0])
	if err != nil {
		return err
	}
	return unix.Exec(path, command, os.Environ())
}

const (
	nftFilesPort = 80
	nftEchoPort  = 7

	shortAnswer = "a short answer"
)

// nftHosts serve without BPF.
func nftHosts() []string { return []string{scenario.LinkedHost, scenario.NginxHost} }

// TestWithoutBPF lets a dispatcher and agents work to which bpf(2) is refused.
func TestWithoutBPF(t *testing.T) {
	needPrograms(t, "curl", "wrk")
	noise := netnslab.Noise{Seed: 3, Size: 4 << 20}
	root := t.TempDir()
	file, err := os.Create(filepath.Join(root, "noise"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(file, io.NewSectionReader(noise, 0, noise.Size)); errors.Join(err, file.Close()) != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "small"), []byte(shortAnswer), 0o644); err != nil {
		t.Fatal(err)
	}
	cfg := scenario.BenchConfig{
		Command: withoutBPF(t), Lab: labName("nobpf"), Root: root, Forward: dispatcher.ForwardNFT, Gate: agent.GateNFT,
	}
	demoServices(&cfg)
	b, servers := matrixBenchOf(t, cfg, dispatcher.DeliveryLinked, dispatcher.DeliveryFD)
	for _, host := range nftHosts() {
		if err := b.StartServer(testContext(t, time.Minute), host); err != nil {
			t.Fatal(err)
		}
	}
	w := &withoutBPFRun{Bench: b, command: cfg.Command, noise: noise}
	t.Run("refused", w.refused)
	t.Run("matrix", func(t *testing.T) { w.matrix(t, servers) })
	t.Run("ends", w.ends)
	t.Run("clients", w.clients)
	t.Run("killed", w.killed)
	t.Run("moves", w.moves)
	t.Run("drain", w.drain)
}

// demoServices adds the demo server's services, which it has linked.
func demoServices(cfg *scenario.BenchConfig) {
	for _, s := range []struct {
		name string
		mode dispatcher.Mode
		port uint16
	}{{demo.FilesService, dispatcher.ModeHTTP, nftFilesPort}, {demo.EchoService, dispatcher.ModeTCP, nftEchoPort}} {
		p := dispatcher.PoolConfig{Name: s.name, Delivery: dispatcher.DeliveryLinked}
		for _, host := range nftHosts() {
			p.Backends = append(p.Backends, dispatcher.BackendConfig{Host: host})
		}
		cfg.Pools = append(cfg.Pools, p)
		cfg.Services = append(cfg.Services, scenario.BenchService{
			Port: s.port, ServiceConfig: dispatcher.ServiceConfig{Name: s.name, Mode: s.mode, Default: s.name},
		})
	}
}

type withoutBPFRun struct {
	*scenario.Bench
	command []string
	noise   netnslab.Noise
}

// refused makes sure that there is no BPF, and that rehome says so.
func (w *withoutBPFRun) refused(t *testing.T) {
	run := func(args ...string) (string, error) {
		out, err := w.Host(scenario.LinkedHost).Command(testContext(t, 20*time.Second), w.command[0], append(w.command[1:], args...)...).CombinedOutput()
		return string(out), err
	}
	if out, err := run("check"); err == nil || !strings.Contains(out, "refuses BPF, and allows nftables") {
		t.Errorf("check: %v\n%s", err, out)
	}
	if out, err := run("check", "--config", w.Path(scenario.LinkedHost, "agent.yaml")); err != nil {
		t.Errorf("check of a configuration that does without BPF: %v\n%s", err, out)
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "agent.yaml")
	text := fmt.Sprintf("host: b1\ninterfaces: [eth0]\nlisten: 127.0.0.1:7171\ncontrol: %[1]s/control.sock\napplications: %[1]s/agent.sock\ngate: {pin: off}\n", dir)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := run("agent", "--config", file); err == nil || !strings.Contains(out, "not permitted") || !strings.Contains(out, "gate.mode: nft") {
		t.Errorf("an agent that wants BPF: %v\n%s", err, out)
	}
}

// matrix hands connections of all shapes off. A packet that comes during a handoff is sent again.
func (w *withoutBPFRun) matrix(t *testing.T, servers *matrixServers) {
	m := &matrix{bench: w.Bench, servers: servers, client: w.Host(scenario.ClientHost)}
	m.port.Store(10000)
	ctx := testContext(t, time.Minute)
	work := make(chan combination)
	var group sync.WaitGroup
	var again, done atomic.Int64
	for range 8 {
		group.Go(func() {
			for c := range work {
				done.Add(1)
				switch err := m.run(ctx, c); {
				case errors.Is(err, errDisturbed):
					again.Add(1)
				case err != nil:
					t.Errorf("%v: %v", c, err)
				}
			}
		})
	}
	for _, c := range combinations() {
		if c.options == allOptions()[0] && (c.delivery == dispatcher.DeliveryLinked || c.delivery == dispatcher.DeliveryFD) {
			work <- c
		}
	}
	close(work)
	group.Wait()
	t.Logf("%d connections, in %d of which the client sent something again", done.Load(), again.Load())
}

// ends waits for the agents to see that the connections are over.
func (w *withoutBPFRun) ends(t *testing.T) {
	client, flow := w.dial(t, nftEchoPort)
	echoes(t, client, 1)
	w.awaitFlow(t, flow)
	if m, err := w.Metrics(testContext(t, 5*time.Second)); err != nil || m["flows"] == 0 {
		t.Errorf("flows %v, %v", m["flows"], err)
	}
	client.Close()
	awaitTrue(t, 15*time.Second, func() error {
		m, err := w.Metrics(testContext(t, 5*time.Second))
		if err == nil && m["flows"] != 0 {
			err = fmt.Errorf("%v flows are left", m["flows"])
		}
		return err
	})
}

// clients are programs that others wrote.
func (w *withoutBPFRun) clients(t *testing.T) {
	run := func(name string, args ...string) string {
		out, err := w.Host(scenario.ClientHost).Command(testContext(t, 20*time.Second), name, args...).CombinedOutput()
		if err != nil {
			t.Errorf("%s: %v: %s", name, err, out)
		}
		return string(out)
	}
	for _, v6 := range []bool{false, true} {
		url := fmt.Sprintf("http://%v/", w.Target(nftFilesPort, v6))
		got := filepath.Join(t.TempDir(), "got")
		run("curl", "-gsSf", "--noproxy", "*", "-o", got, url+"noise")
		text, err := os.ReadFile(got)
		if err != nil {
			t.Fatal(err)
		}
		w.same(t, text, 0)
		out := run("wrk", "-t1", "-c8", "-d1s", url+"small")
		if strings.Contains(out, "Socket errors") || strings.Contains(out, "Non-2xx") || !strings.Contains(out, "Requests/sec") {
			t.Errorf("wrk: %s", out)
		}
	}
	begin := time.Now()
	const clients, each = 8, 100
	var group sync.WaitGroup
	for range clients {
		group.Go(func() {
			for range each {
				if err := w.ask(); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	group.Wait()
	t.Logf("%d new connections in %v", clients*each, time.Since(begin))
	m, err := w.Metrics(testContext(t, 5*time.Second))
	if err != nil || m["relayed_bytes_total"] != 0 || m["forwarded_packets_total"] == 0 {
		t.Errorf("%v relayed bytes, %v forwarded packets, %v", m["relayed_bytes_total"], m["forwarded_packets_total"], err)
	}
}

// ask asks once, with a new connection.
func (w *withoutBPFRun) ask() error {
	conn, err := w.Host(scenario.ClientHost).Dial(context.Background(), "tcp", w.Target(nftFilesPort, false).String())
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	if _, err := fmt.Fprintf(conn, "GET /small HTTP/1.1\r\nHost: shop.example\r\n\r\n"); err != nil {
		return err
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if text, err := io.ReadAll(resp.Body); err != nil || string(text) != shortAnswer {
		return fmt.Errorf("answer %q: %w", text, err)
	}
	return nil
}

func (w *withoutBPFRun) same(t *testing.T, got []byte, at int64) {
	t.Helper()
	want := make([]byte, len(got))
	if _, err := w.noise.ReadAt(want, at); err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	if string(got) != string(want) || at+int64(len(got)) != w.noise.Size {
		t.Errorf("%d bytes from %d on: they are not the file's", len(got), at)
	}
}
