// SPDX-License-Identifier: Apache-2.0

package handoff

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/handoff/wire"
	"github.com/rehome-net/rehome/tcprepair"
)

// TestImportRefused: what cannot be imported is refused with a reason, and its descriptor closed.
func TestImportRefused(t *testing.T) {
	path := socketPath(t)
	agent := startAgent(t, path)
	source := listen(t, path, Config{Export: exportNothing})
	from := agent.app()
	listen(t, path, Config{Import: func(_ context.Context, c *Conn, s State) error {
		switch string(s.Data) {
		case "bad":
			return errors.New("cannot read that")
		case "close":
			return c.Close()
		}
		return nil
	}})
	to := agent.app()
	_, server := connect(t, source)
	flow := server.Flow()
	socket := func() int {
		e := from.export(1, flow)
		from.send(1, &wire.Resume{})
		return e.fd
	}
	udp, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	unconnected, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	file, err := unix.Open(os.DevNull, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	other := tcprepair.Flow{Local: flow.Local, Remote: netip.AddrPortFrom(flow.Remote.Addr(), 1)}
	state := func(data string) []byte { return envelope{data: []byte(data)}.append(nil) }
	tests := []struct {
		name   string
		m      *wire.Import
		fd     int
		code   wire.Code
		reason string
	}{
		{"importer's error", &wire.Import{Flow: flow, Service: "test", State: state("bad")}, socket(), wire.CodeFailed, "cannot read that"},
		{"importer closes", &wire.Import{Flow: flow, Service: "test", State: state("close")}, socket(), wire.CodeFailed, "closed"},
		{"other service", &wire.Import{Flow: flow, Service: "web"}, socket(), wire.CodeNoService, "serves test"},
		{"foreign State", &wire.Import{Flow: flow, Service: "test", State: []byte("{}")}, socket(), wire.CodeFailed, "version 123"},
		{"cut State", &wire.Import{Flow: flow, Service: "test", State: []byte{1, 0x80}}, socket(), wire.CodeFailed, "cut off"},
		{"other flow", &wire.Import{Flow: other, Service: "test"}, socket(), wire.CodeFailed, "socket is of flow"},
		{"no flow", &wire.Import{Service: "test"}, socket(), wire.CodeFailed, "socket is of flow"},
		{"UDP socket", &wire.Import{Flow: flow, Service: "test"}, udp, wire.CodeFailed, "want TCP"},
		{"unconnected socket", &wire.Import{Flow: flow, Service: "test"}, unconnected, wire.CodeFailed, "getpeername"},
		{"file", &wire.Import{Flow: flow, Service: "test"}, file, wire.CodeFailed, "not a socket"},
	}
	fds := openFDs(t)
	for i, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			id := uint64(100 + i)
			if err := to.link.SendFD(id, test.m, test.fd); err != nil {
				t.Fatal(err)
			}
			m, _ := expect[*wire.Refuse](to, id)
			if m.Code != test.code || !strings.Contains(m.Reason, test.reason) {
				t.Errorf("refused by %v %q, want %v with %q", m.Code, m.Reason, test.code, test.reason)
			}
		})
	}
	eventually(t, "descriptors are closed", func() bool { return openFDs(t) <= fds-len(tests) })
}

// TestImporterMayOnlyLook: within the importer the connection has addresses, counts and deadlines, and nothing waits.
func TestImporterMayOnlyLook(t *testing.T) {
	path := socketPath(t)
	agent := startAgent(t, path)
	target, client, server, to := startImport(t, path, agent, Config{Import: func(_ context.Context, c *Conn, s State) error {
		_, rerr := c.Read(make([]byte, 1))
		_, werr := c.Write([]byte("x"))
		for what, err := range map[string]error{"read": rerr, "write": werr, "option": c.SetNoDelay(true)} {
			if !errors.Is(err, ErrNotActive) {
				return errors.New(what + " within the importer: want ErrNotActive")
			}
		}
		if c.RemoteAddr() == nil || !c.Imported() || string(s.Ahead) != "early" || string(c.State().Ahead) != "early" {
			return errors.New("addresses or State are missing")
		}
		return c.SetReadDeadline(time.Unix(1, 0))
	}})
	expect[*wire.Imported](to, 9)
	to.send(9, &wire.Activate{})
	c := acceptConn(t, target)
	if got := await(t, "read", asyncRead(c, 1)); !errors.Is(got.err, os.ErrDeadlineExceeded) {
		t.Errorf("the importer's deadline is lost: read %+v", got)
	}
	_ = c.SetReadDeadline(time.Time{})
	write(t, client, "x")
	if got := await(t, "read", asyncRead(c, 1)); got.data != "x" {
		t.Errorf("read %+v", got)
	}
	if c.Flow() != server.Flow() {
		t.Errorf("flow %v, want %v", c.Flow(), server.Flow())
	}
}

// TestOptionsSurvive: package net's favourite options do not replace those that came with the socket.
func TestOptionsSurvive(t *testing.T) {
	path := socketPath(t)
	agent := startAgent(t, path)
	source := listen(t, path, Config{Export: exportNothing})
	from := agent.app()
	target := listen(t, path, Config{})
	to := agent.app()
	options := map[string]struct{ level, name, value int }{
		"nodelay":   {unix.IPPROTO_TCP, unix.TCP_NODELAY, 0},
		"keepalive": {unix.SOL_SOCKET, unix.SO_KEEPALIVE, 0},
		"idle":      {unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 77},
		"interval":  {unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 11},
		"count":     {unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 3},
	}
	_, server := connect(t, source)
	raw, err := server.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	for name, o := range options {
		var serr error
		if err := raw.Control(func(fd uintptr) { serr = unix.SetsockoptInt(int(fd), o.level, o.name, o.value) }); err != nil || serr != nil {
			t.Fatalf("set %s: %v %v", name, err, serr)
		}
	}
	migrate(from, to, 1, server.Flow())
	moved := acceptConn(t, target)
	if raw, err = moved.SyscallConn(); err != nil {
		t.Fatal(err)
	}
	for name, o := range options {
		var got int
		var gerr error
		if err := raw.Control(func(fd uintptr) { got, gerr = unix.GetsockoptInt(int(fd), o.level, o.name) }); err != nil || gerr != nil || got != o.value {
			t.Errorf("%s is %d, want %d (%v %v)", name, got, o.value, err, gerr)
		}
	}
}

func FuzzEnvelope(f *testing.F) {
	f.Add([]byte(nil))
	f.Add(envelope{read: 1, written: 1 << 63, data: []byte("x")}.append(nil))
	f.Add([]byte{1, 0xff, 0xff})
	f.Add([]byte{2})
	f.Fuzz(func(t *testing.T, raw []byte) {
		e, err := parseEnvelope(raw)
		if err != nil {
			if !errors.Is(err, ErrState) {
				t.Fatalf("%v is no ErrState", err)
			}
			return
		}
		again, err := parseEnvelope(e.append(nil))
		if err != nil || again.read != e.read || again.written != e.written || string(again.data) != string(e.data) {
			t.Fatalf("%+v became %+v, %v", e, again, err)
		}
	})
}

// TestEnvelope holds the bytes that travel: servers of two versions meet in a rolling upgrade.
func TestEnvelope(t *testing.T) {
	tests := []struct {
		e    envelope
		want string
	}{
		{envelope{}, "\x01\x00\x00"},
		{envelope{read: 1, written: 300, data: []byte("data")}, "\x01\x01\xac\x02data"},
		{envelope{read: 1<<64 - 1}, "\x01\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\x00"},
	}
	for _, test := range tests {
		if got := string(test.e.append(nil)); got != test.want {
			t.Errorf("%+v is %q, want %q", test.e, got, test.want)
		}
		got, err := parseEnvelope([]byte(test.want))
		if err != nil || got.read != test.e.read || got.written != test.e.written || string(got.data) != string(test.e.data) {
			t.Errorf("%q is %+v, %v", test.want, got, err)
		}
	}
	for _, bad := range []string{"\x00", "\x02\x00\x00", "\x01", "\x01\x00", "\x01\x80", "\x01\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02\x00"} {
		if e, err := parseEnvelope([]byte(bad)); !errors.Is(err, ErrState) {
			t.Errorf("%q is %+v, %v; want ErrState", bad, e, err)
		}
	}
}
