// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"io"
	"math/big"
	"net"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

const patience = 10 * time.Second

// pipe returns two connected net.Conns of some kind.
type pipe func(t testing.TB) (a, b net.Conn)

func memoryPipe(testing.TB) (a, b net.Conn) { return net.Pipe() }

func unixPipe(t testing.TB) (a, b net.Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socketpair")
		conns[i], err = net.FileConn(f)
		_ = f.Close()
		if err != nil {
			t.Fatal(err)
		}
	}
	return conns[0], conns[1]
}

func tcpPipe(t testing.TB) (a, b net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if a, err = net.Dial("tcp", ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if b, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	return a, b
}

func tlsPipe(t testing.TB) (a, b net.Conn) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"b"}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(leaf)
	x, y := tcpPipe(t)
	cert := tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	return tls.Client(x, &tls.Config{RootCAs: roots, ServerName: "b", MinVersion: tls.VersionTLS13}),
		tls.Server(y, &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13})
}

func links(t testing.TB, p pipe) (a, b *Link) {
	t.Helper()
	x, y := p(t)
	_ = x.SetReadDeadline(time.Now().Add(patience))
	_ = y.SetReadDeadline(time.Now().Add(patience))
	a, b = NewLink(x), NewLink(y)
	t.Cleanup(func() {
		_ = a.Close()
		_ = b.Close()
	})
	return a, b
}

// TestLink sends every kind of frame both ways, and values of a megabyte, over every kind of connection.
func TestLink(t *testing.T) {
	pipes := map[string]pipe{"memory": memoryPipe, "unix": unixPipe, "tcp": tcpPipe, "tls": tlsPipe}
	for name, p := range pipes {
		t.Run(name, func(t *testing.T) {
			a, b := links(t, p)
			var frames []Frame
			for _, c := range frameCases() {
				if !c.frame.Message.Kind().Carries() {
					frames = append(frames, c.frame)
				}
			}
			for i := range 8 {
				frames = append(frames, Frame{uint64(i), &Prepared{Ahead: bytes.Repeat([]byte{byte(i)}, MaxFrame-100)}})
			}
			done := make(chan error, 2)
			receive := func(l *Link) {
				for _, want := range frames {
					got, fd, err := l.Receive()
					if err == nil && fd != -1 {
						err = errors.New("a descriptor came along")
					}
					if err == nil && !bytes.Equal(encode(t, got), encode(t, want)) {
						err = errors.New("frame differs: " + cmp.Diff(want.Message.Kind(), got.Message.Kind()))
					}
					if err != nil {
						done <- err
						return
					}
				}
				done <- nil
			}
			go receive(a)
			go receive(b)
			for _, l := range []*Link{a, b} {
				for _, f := range frames {
					if err := l.Send(f.ID, f.Message); err != nil {
						t.Fatal(err)
					}
				}
			}
			for range 2 {
				if err := <-done; err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// TestDescriptors passes far more of them than one message can carry: each must arrive with its own frame.
func TestDescriptors(t *testing.T) {
	const count = 2500
	before := openFDs(t)
	t.Run("pass", func(t *testing.T) {
		a, b := links(t, unixPipe)
		inodes := make(chan uint64, count)
		sent := make(chan error, 1)
		go func() {
			defer close(sent)
			for i := range uint64(count) {
				r, w, err := os.Pipe()
				if err != nil {
					sent <- err
					return
				}
				fd, err := unix.Dup(int(r.Fd()))
				if err != nil {
					sent <- err
					return
				}
				inodes <- inode(t, fd)
				_ = r.Close()
				_ = w.Close()
				// Frames of all sizes, some without a descriptor, so that the two streams slide along each other.
				if err := errors.Join(
					a.SendFD(i, &Import{Flow: flow4(), State: make([]byte, i*7919%5000)}, fd),
					a.Send(i, &Activate{}),
				); err != nil {
					sent <- err
					return
				}
			}
		}()
		for i := range uint64(count) {
			f, fd, err := b.Receive()
			if err != nil || f.ID != i || fd < 0 {
				t.Fatalf("frame %d: %v %v, descriptor %d", i, f, err, fd)
			}
			if got, want := inode(t, fd), <-inodes; got != want {
				t.Fatalf("frame %d came with another's descriptor", i)
			}
			closeFD(fd)
			if f, fd, err := b.Receive(); err != nil || f.Message.Kind() != KindActivate || fd != -1 {
				t.Fatalf("after frame %d: %v %v, descriptor %d", i, f, err, fd)
			}
		}
		for err := range sent {
			t.Error(err)
		}
	})
	t.Run("queued and never read", func(t *testing.T) {
		a, b := links(t, unixPipe)
		for i := range uint64(500) {
			if err := a.SendFD(i, &Import{Flow: flow4(), State: make([]byte, 4000)}, devNull(t)); err != nil {
				t.Fatal(err)
			}
		}
		if _, fd, err := b.Receive(); err != nil {
			t.Error(err)
		} else {
			closeFD(fd)
		}
	})
	// Descriptors still in a closed socket's queue are freed by the kernel, of this process they are none.
	if after := openFDs(t); after != before {
		t.Errorf("%d descriptors are open, %d were before", after, before)
	}
}

func TestSendFDOwns(t *testing.T) {
	before := openFDs(t)
	a, _ := links(t, memoryPipe)
	u, _ := links(t, unixPipe)
	base := openFDs(t)
	if err := a.SendFD(1, &Import{Flow: flow4()}, devNull(t)); err == nil {
		t.Error("a descriptor went through a pipe")
	}
	if err := u.SendFD(1, &Activate{}, devNull(t)); err == nil {
		t.Error("a descriptor went with Activate")
	}
	if err := u.Send(1, &Import{Flow: flow4()}); err == nil {
		t.Error("Import went without a descriptor")
	}
	if err := u.SendFD(1, &Exported{State: make([]byte, MaxFrame)}, devNull(t)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("huge frame: %v, want ErrTooLarge", err)
	}
	_ = u.Close()
	if err := u.SendFD(1, &Import{Flow: flow4()}, devNull(t)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("on a closed link: %v, want net.ErrClosed", err)
	}
	if after := openFDs(t); after > base || before == 0 {
		t.Errorf("%d descriptors are open, %d were before", after, base)
	}
}

// TestReceiveRefuses sends raw bytes, and raw descriptors.
func TestReceiveRefuses(t *testing.T) {
	ping := encode(t, Frame{1, &Ping{}})
	imported := encode(t, Frame{1, &Import{Flow: flow4()}})
	tests := []struct {
		name  string
		bytes []byte
		fds   int
		err   error
	}{
		{"nothing", nil, 0, io.EOF},
		{"half a length", ping[:2], 0, io.ErrUnexpectedEOF},
		{"length alone", ping[:4], 0, io.ErrUnexpectedEOF},
		{"half a frame", ping[:7], 0, io.ErrUnexpectedEOF},
		{"length 0", []byte{0, 0, 0, 0}, 0, ErrMalformed},
		{"length 8", []byte{0, 0, 0, 8}, 0, ErrMalformed},
		{"length 1 MiB and one", binary.BigEndian.AppendUint32(nil, MaxFrame+1), 0, ErrTooLarge},
		{"length 4 GiB", []byte{255, 255, 255, 255}, 0, ErrTooLarge},
		{"unknown kind", []byte{0, 0, 0, 9, 250, 0, 0, 0, 0, 0, 0, 0, 0}, 0, ErrUnknownKind},
		{"descriptor missing", imported, 0, ErrMalformed},
		{"descriptors nobody asked for", bytes.Repeat(ping, 10), 10, io.EOF},
	}
	before := openFDs(t)
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			x, y := unixPipe(t)
			l := NewLink(y)
			u, ok := x.(*net.UnixConn)
			if !ok {
				t.Fatal("no UNIX socket")
			}
			var rights []byte
			if test.fds > 0 {
				fd := devNull(t)
				list := make([]int, test.fds)
				for i := range list {
					list[i] = fd
				}
				rights = unix.UnixRights(list...)
				defer closeFD(fd)
			}
			if len(test.bytes) > 0 {
				if _, _, err := u.WriteMsgUnix(test.bytes, rights, nil); err != nil {
					t.Fatal(err)
				}
			}
			_ = x.Close()
			var err error
			for err == nil {
				_, _, err = l.Receive()
			}
			if !errors.Is(err, test.err) {
				t.Errorf("got %v, want %v", err, test.err)
			}
			_ = l.Close()
		})
	}
	if after := openFDs(t); after != before {
		t.Errorf("%d descriptors are open, %d were before", after, before)
	}
}

// TestHostileDescriptors: a peer that sends descriptors without frames is cut off before it fills the table.
func TestHostileDescriptors(t *testing.T) {
	before := openFDs(t)
	x, y := unixPipe(t)
	l := NewLink(y)
	u, ok := x.(*net.UnixConn)
	if !ok {
		t.Fatal("no UNIX socket")
	}
	list := make([]int, maxFDs)
	fd := devNull(t)
	for i := range list {
		list[i] = fd
	}
	go func() {
		ping, err := Append(nil, Frame{1, &Ping{}})
		for err == nil {
			_, _, err = u.WriteMsgUnix(ping, unix.UnixRights(list...), nil)
		}
	}()
	var err error
	for n := 0; err == nil; n++ {
		if _, _, err = l.Receive(); n > 10 {
			t.Fatal("never refused")
		}
	}
	if !errors.Is(err, ErrTooLarge) {
		t.Errorf("got %v, want ErrTooLarge", err)
	}
	if most := openFDs(t) - before; most > maxWaitingFDs+10 {
		t.Errorf("%d descriptors had been let in", most)
	}
	_ = l.Close()
	_ = x.Close()
	closeFD(fd)
	if after := openFDs(t); after != before {
		t.Errorf("%d descriptors are open, %d were before", after, before)
	}
}

// TestSlowPeer: Send never waits, and a peer that reads nothing is given up before memory is.
func TestSlowPeer(t *testing.T) {
	a, _ := links(t, memoryPipe)
	m := &Prepared{Ahead: make([]byte, MaxFrame-100)}
	const before = maxQueued - 20*MaxFrame
	if err := a.Send(1, &Ping{}); err != nil {
		t.Fatal(err)
	}
	a.mu.Lock()
	for !a.writing {
		a.mu.Unlock()
		time.Sleep(time.Millisecond)
		a.mu.Lock()
	}
	a.queue = make([]byte, before, maxQueued+2*MaxFrame) // Queueing all of it would take seconds.
	a.mu.Unlock()
	var err error
	n := 0
	for ; err == nil && n < 100; n++ {
		err = a.Send(1, m)
	}
	if !errors.Is(err, ErrOverrun) {
		t.Fatalf("after %d frames: %v, want ErrOverrun", n, err)
	}
	if n < 20 || n > 23 {
		t.Errorf("given up after %d frames, want 21 or so", n)
	}
	if err := a.Send(1, &Ping{}); !errors.Is(err, ErrOverrun) {
		t.Errorf("later: %v, want ErrOverrun", err)
	}
}

func TestDrain(t *testing.T) {
	x, y := net.Pipe()
	a := NewLink(x)
	defer a.Close()
	frame := encode(t, Frame{1, &Ping{}})
	if err := a.Send(1, &Ping{}); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	a.Drain(20 * time.Millisecond)
	if took := time.Since(start); took < 20*time.Millisecond {
		t.Errorf("Drain returned after %v with a frame that nobody had read", took)
	}
	got := make(chan []byte)
	go func() {
		b := make([]byte, len(frame))
		_, _ = io.ReadFull(y, b)
		got <- b
	}()
	a.Drain(patience)
	_ = a.Close()
	if b := <-got; !bytes.Equal(b, frame) {
		t.Errorf("read %x after Drain, want %x", b, frame)
	}
}

func TestCloseWakesReceive(t *testing.T) {
	a, b := links(t, unixPipe)
	done := make(chan error)
	go func() {
		_, _, err := b.Receive()
		done <- err
	}()
	_ = a.Close()
	select {
	case err := <-done:
		if !errors.Is(err, io.EOF) {
			t.Errorf("got %v, want EOF", err)
		}
	case <-time.After(patience):
		t.Fatal("Receive still waits")
	}
	if err := a.Close(); err != nil {
		t.Errorf("second close: %v", err)
	}
}

// FuzzReceive gives the stream reader arbitrary bytes in arbitrary pieces: it must return what the pieces spell, however
// they are cut.
func FuzzReceive(f *testing.F) {
	var all []byte
	for _, c := range frameCases() {
		if !c.frame.Message.Kind().Carries() {
			all = append(all, encode(f, c.frame)...)
		}
	}
	f.Add(all, uint8(1))
	f.Add(all, uint8(100))
	f.Add(all[:len(all)-1], uint8(13))
	f.Fuzz(func(t *testing.T, raw []byte, cut uint8) {
		whole, werr := receiveAll(raw, len(raw))
		pieces, perr := receiveAll(raw, int(cut)+1)
		if !bytes.Equal(whole, pieces) {
			t.Fatalf("in pieces of %d: %x, in one %x", int(cut)+1, pieces, whole)
		}
		if (werr == nil) != (perr == nil) || werr != nil && werr.Error() != perr.Error() {
			t.Fatalf("in pieces of %d: %v, in one %v", int(cut)+1, perr, werr)
		}
	})
}

// receiveAll decodes a stream that arrives in pieces of the given size, and returns its frames encoded again.
func receiveAll(raw []byte, size int) (frames []byte, err error) {
	l := &Link{reader: bufio.NewReader(&pieceReader{raw: raw, size: max(size, 1)})}
	for {
		f, _, err := l.Receive()
		if err != nil {
			return frames, err
		}
		if frames, err = Append(frames, f); err != nil {
			return frames, nil // What was decoded can be too large when encoded by this side's rules.
		}
	}
}

type pieceReader struct {
	raw  []byte
	size int
}

func (r *pieceReader) Read(b []byte) (int, error) {
	n := copy(b, r.raw[:min(r.size, len(r.raw))])
	if r.raw = r.raw[n:]; n == 0 {
		return 0, io.EOF
	}
	return n, nil
}

func BenchmarkSend(b *testing.B) {
	x, y := links(b, unixPipe)
	go func() {
		for {
			if _, _, err := y.Receive(); err != nil {
				return
			}
		}
	}()
	m := &Transfer{Snapshot: make([]byte, 300), State: make([]byte, 100)}
	b.ReportAllocs()
	for b.Loop() {
		if err := x.Send(1, m); err != nil {
			b.Fatal(err)
		}
	}
}

func devNull(t testing.TB) int {
	t.Helper()
	fd, err := unix.Open(os.DevNull, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

func inode(t testing.TB, fd int) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		t.Error(err)
	}
	return st.Ino
}

func openFDs(t testing.TB) int {
	t.Helper()
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(names)
}
