// SPDX-License-Identifier: Apache-2.0

package agent_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/agent"
	"github.com/rehome-net/rehome/agent/criu"
	netnslab "github.com/rehome-net/rehome/netns-lab"
	"github.com/rehome-net/rehome/netns-lab/labtest"
	"github.com/rehome-net/rehome/netns-lab/scenario"
)

// program returns the path of rehome: $REHOME, or one that is built for this run.
func program(t testing.TB) string {
	t.Helper()
	labtest.RequireRoot(t)
	if path := os.Getenv("REHOME"); path != "" {
		return path
	}
	path, err := buildProgram()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

var buildProgram = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "rh-agent-test-")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "rehome")
	out, err := exec.Command("go", "build", "-o", path, "github.com/rehome-net/rehome/cmd/rehome").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("go build: %w: %s", err, out)
	}
	return path, nil
})

func removeProgram() {
	if os.Getenv("REHOME") == "" && os.Geteuid() == 0 {
		if path, err := buildProgram(); err == nil {
			_ = os.RemoveAll(filepath.Dir(path))
		}
	}
}

// requireCRIU returns a CRIU that works; without one the test is skipped.
func requireCRIU(t testing.TB) string {
	t.Helper()
	labtest.RequireRoot(t)
	fetched, err := filepath.Abs(filepath.Join("..", ".cache", "criu", "criu"))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{os.Getenv("REHOME_CRIU"), fetched, "criu"} {
		path, _, ferr := criu.Find(p)
		if ferr == nil {
			return path
		}
		err = ferr
	}
	t.Skip("no CRIU that works:", err)
	return ""
}

// echoProgram answers each connection's bytes with themselves, all in one process. It listens on every address.
const echoProgram = `
import selectors, socket, os
# Nothing of whoever started it stays open.
null = os.open("/dev/null", os.O_RDWR)
for fd in range(3):
    os.dup2(null, fd)
os.closerange(3, 1024)
sel = selectors.DefaultSelector()
s = socket.socket(socket.AF_INET6)
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(("::", 7777))
s.listen(512)
s.setblocking(False)
pair = socket.socketpair()
pair[0].send(b"inside")
child, ask = os.pipe()
answer, back = os.pipe()
if os.fork() == 0:
    while True:
        b = os.read(child, 9)
        if not b:
            os._exit(0)
        os.write(back, b"!" + b)
os.close(child)
os.close(back)
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(("0.0.0.0", 7777))
memory = bytearray(os.urandom(8 << 20))
sel.register(s, selectors.EVENT_READ)
while True:
    for k, _ in sel.select():
        if k.fileobj is s:
            c, _ = s.accept()
            sel.register(c, selectors.EVENT_READ)
            continue
        b = k.fileobj.recv(65536)
        if b.startswith(b"run "):
            exec(b[4:].decode())
        if not b:
            sel.unregister(k.fileobj)
            k.fileobj.close()
            continue
        k.fileobj.sendall(b)
`

const echoPort = 7777

// site is a lab in which agents run, and a server of a program that knows nothing of them.
type site struct {
	t       *testing.T
	cluster *scenario.Cluster
	program string
	pid     int
}

// newSite starts it; adjust may be nil.
func newSite(t *testing.T, adjust func(*agent.Config)) *site {
	t.Helper()
	path := requireCRIU(t)
	s := &site{t: t, program: program(t)}
	topo := netnslab.Standard(2)
	topo.Name = fmt.Sprintf("proc%d-%d", os.Getpid(), len(t.Name()))
	cluster, err := scenario.StartCluster(t.Context(), scenario.ClusterConfig{
		Topology: topo, Command: []string{s.program}, NoServers: true, LogLevel: "debug",
		Adjust: func(c *agent.Config) {
			service := agent.ServiceConfig{Name: "echo", Entry: "entry", Servers: []string{"a", "b"}, Process: true}
			for _, vip := range topo.VIPs {
				service.Addresses = append(service.Addresses, addrPort(vip.String(), echoPort))
			}
			c.Services = []agent.ServiceConfig{service}
			c.Process.CRIU = path
			if adjust != nil {
				adjust(c)
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	s.cluster = cluster
	t.Cleanup(func() {
		for _, host := range []string{"a", "b"} {
			s.killAll(host)
			if t.Failed() {
				t.Logf("agent of %s:\n%s", host, cluster.Logs(host))
			}
		}
		if t.Failed() {
			t.Logf("agent of entry:\n%s", cluster.Logs("entry"))
		}
		if err := cluster.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// killAll ends the processes of a host but its agent.
func (s *site) killAll(host string) {
	out, err := exec.Command("ip", "netns", "pids", labtest.Host(s.t, s.cluster.Lab, host).Namespace()).Output()
	if err != nil {
		s.t.Error(err)
		return
	}
	for _, f := range strings.Fields(string(out)) {
		pid, err := strconv.Atoi(f)
		if err != nil || pid <= 1 {
			continue
		}
		line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if !strings.Contains(string(line), "agent\x00") {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
}

// serve starts a program on a host as a service manager does.
func (s *site) serve(host string, command ...string) {
	s.t.Helper()
	cmd := labtest.Host(s.t, s.cluster.Lab, host).Command(s.t.Context(), command[0], command[1:]...)
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	cmd.Dir = "/"
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.pid = cmd.Process.Pid
	go func() { _ = cmd.Wait() }()
}

// dial connects a client to the service, which may have to start first.
func (s *site) dial() *client {
	s.t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		ctx, cancel := context.WithTimeout(s.t.Context(), time.Second)
		c, err := s.connect(ctx)
		cancel()
		if err == nil {
			s.t.Cleanup(func() { _ = c.conn.Close() })
			return c
		}
		if time.Now().After(deadline) {
			s.t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// connect tries to connect a client once.
func (s *site) connect(ctx context.Context) (*client, error) {
	vip := s.cluster.Lab.Topology().VIP4().String()
	host, err := s.cluster.Lab.Host("client")
	if err != nil {
		return nil, err
	}
	conn, err := host.Dial(ctx, "tcp", net.JoinHostPort(vip, strconv.Itoa(echoPort)))
	if err != nil {
		return nil, err
	}
	return &client{t: s.t, conn: conn, reader: bufio.NewReader(conn)}, nil
}

// client has a connection to the service.
type client struct {
	t      *testing.T
	conn   net.Conn
	reader *bufio.Reader
}

// say sends a line and wants it back.
func (c *client) say(format string, args ...any) {
	c.t.Helper()
	if err := c.try(fmt.Sprintf(format, args...)); err != nil {
		c.t.Fatal(err)
	}
}

// try is say, for any goroutine.
func (c *client) try(line string) error {
	_ = c.conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := fmt.Fprintln(c.conn, line); err != nil {
		return err
	}
	got, err := c.reader.ReadString('\n')
	if err != nil || got != line+"\n" {
		return fmt.Errorf("said %q, got %q: %w", line, got, err)
	}
	return nil
}

// migration is what rehome migrate prints.
type migration struct {
	Moved, Failed, Lost int
	Error               string
	Processes           []struct {
		PID, NewPID, Connections, HeldPackets int
		Outcome, Error                        string
		FreezeMicros, DumpMicros, TotalMicros int64
		ImageBytes, LazyBytes                 uint64
	}
}

// migrate runs rehome migrate on a host.
func (s *site) migrate(host string, args ...string) (migration, error) {
	s.t.Helper()
	args = append([]string{"migrate", "--agent", scenario.ControlSocket(s.cluster.Lab.Topology().Name, host), "--output", "json"}, args...)
	ctx, cancel := context.WithTimeout(s.t.Context(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, s.program, args...)
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	var m migration
	if jerr := json.Unmarshal(out, &m); jerr != nil {
		s.t.Fatalf("%v: %v: %s%s", args, err, out, said.String())
	}
	if len(m.Processes) != 1 {
		s.t.Fatalf("%d processes in %s %s", len(m.Processes), out, said.String())
	}
	return m, err
}

// move moves the server and wants it to.
func (s *site) move(from, to string) migration {
	s.t.Helper()
	m, err := s.migrate(from, "--process", strconv.Itoa(s.pid), "--to", to)
	if err != nil || m.Moved != 1 {
		s.t.Fatalf("%v: %+v", err, m)
	}
	p := m.Processes[0]
	s.t.Logf("%s to %s: %d connections, %d bytes, frozen %v, of that dump %v, in all %v, %d packets held", from, to, p.Connections, p.ImageBytes,
		time.Duration(p.FreezeMicros)*time.Microsecond, time.Duration(p.DumpMicros)*time.Microsecond, time.Duration(p.TotalMicros)*time.Microsecond, p.HeldPackets)
	s.pid = p.NewPID
	return m
}

// TestProcessMoves moves a server there and back, with connections that stay and new ones.
func TestProcessMoves(t *testing.T) {
	s := newSite(t, nil)
	s.serve("a", "python3", "-c", echoProgram)
	old := s.dial()
	old.say("hello")
	half := s.halfClosed()
	at := "a"
	for i, to := range []string{"b", "a", "b"} {
		s.move(at, to)
		at = to
		old.say("hop %d", i)
		s.dial().say("new at %s", to)
		// What the tree has besides: a pair of UNIX sockets with something in it, a bound UDP socket, a child at a pipe.
		old.say("run assert pair[1].recv(9) == b'inside'; pair[0].send(b'inside')")
		old.say("run assert udp.getsockname()[1] == 7777")
		old.say("run os.write(ask, b'?'); assert os.read(answer, 9) == b'!?'")
		if i == 1 {
			half()
		}
	}
}

func addrPort(addr string, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr(addr), port)
}

// halfClosed opens a connection, and closes its client's end for writing; the returned function checks that the server's end still works, and closes
// it.
func (s *site) halfClosed() func() {
	c := s.dial()
	c.say("run last = k.fileobj; sel.unregister(last)")
	tcp, ok := c.conn.(*net.TCPConn)
	if !ok {
		s.t.Fatalf("%T", c.conn)
	}
	if err := tcp.CloseWrite(); err != nil {
		s.t.Fatal(err)
	}
	return func() {
		s.t.Helper()
		s.dial().say("run last.sendall(b'from the other end\\n'); last.close()")
		_ = c.conn.SetDeadline(time.Now().Add(10 * time.Second))
		got, err := io.ReadAll(c.reader)
		if err != nil || string(got) != "from the other end\n" {
			s.t.Errorf("got %q and %v", got, err)
		}
	}
}

// TestProcessUnderLoad moves a server while clients send without a pause, and others connect anew.
func TestProcessUnderLoad(t *testing.T) {
	s := newSite(t, nil)
	s.serve("a", "python3", "-c", echoProgram)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var group sync.WaitGroup
	var said, opened atomic.Int64
	var longest atomic.Int64
	fail := make(chan error, 64)
	for i := range 20 {
		c := s.dial()
		group.Add(1)
		go func() {
			defer group.Done()
			for n := 0; ctx.Err() == nil; n++ {
				began := time.Now()
				if err := c.try(fmt.Sprintf("client %d line %d", i, n)); err != nil {
					fail <- fmt.Errorf("client %d: %w", i, err)
					return
				}
				said.Add(1)
				longest.Store(max(longest.Load(), int64(time.Since(began))))
			}
		}()
	}
	group.Add(1)
	go func() {
		defer group.Done()
		tick := time.NewTicker(4 * time.Millisecond)
		defer tick.Stop()
		for ctx.Err() == nil {
			<-tick.C
			c, err := s.connect(ctx)
			if ctx.Err() != nil {
				return
			}
			if err == nil {
				err = c.try("short")
				_ = c.conn.Close()
			}
			if err != nil {
				fail <- fmt.Errorf("new connection: %w", err)
				return
			}
			opened.Add(1)
		}
	}()
	at := "a"
	for _, to := range []string{"b", "a"} {
		before := opened.Load()
		s.move(at, to)
		at = to
		await(t, "new connections after the move", func() bool { return opened.Load() > before+20 })
	}
	stop()
	group.Wait()
	close(fail)
	for err := range fail {
		t.Error(err)
	}
	t.Logf("%d lines, %d new connections, longest wait %v", said.Load(), opened.Load(), time.Duration(longest.Load()))
}

// await waits until a condition holds.
func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within 10 s", what)
		}
	}
}
