// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rehome-net/rehome/tcprepair"
)

func flow4() tcprepair.Flow {
	return tcprepair.Flow{Local: netip.MustParseAddrPort("192.0.2.1:80"), Remote: netip.MustParseAddrPort("198.51.100.7:40312")}
}

func flow6() tcprepair.Flow {
	return tcprepair.Flow{Local: netip.MustParseAddrPort("[2001:db8::1]:443"), Remote: netip.MustParseAddrPort("[2001:db8:1::7]:50123")}
}

type frameCase struct {
	name  string
	frame Frame
}

// frameCases has at least one frame of every kind. It feeds encoding, decoding, the golden file and the fuzzer.
func frameCases() []frameCase {
	return []frameCase{
		{"hello", Frame{0, &Hello{Min: 1, Max: 3, Name: "web-1", Software: "rehome 1.0"}}},
		{"hello empty", Frame{0, &Hello{}}},
		{"ping", Frame{1<<64 - 1, &Ping{}}},
		{"pong", Frame{1, &Pong{}}},
		{"refuse", Frame{2, &Refuse{Code: CodeNotNow, Reason: "busy"}}},
		{"chunk", Frame{3, &Chunk{Blob: BlobSnapshot, Data: []byte{0, 1, 2}}}},
		{"offer 4", Frame{4, &Offer{Flow: flow4(), Service: "files", Epoch: 7, Limit: 5 * time.Second}}},
		{"offer 6", Frame{5, &Offer{Flow: flow6(), Service: "files", Epoch: 1<<32 - 1, Limit: time.Microsecond}}},
		{"accept", Frame{6, &Accept{}}},
		{"state sent", Frame{7, &StateSent{}}},
		{"state stored", Frame{8, &StateStored{}}},
		{"transfer", Frame{9, &Transfer{Snapshot: []byte("snap"), State: []byte("state")}}},
		{"committed", Frame{10, &Committed{Epoch: 256}}},
		{"held", Frame{11, &Held{Frames: [][]byte{[]byte("one"), []byte("two")}, Last: true}}},
		{"cancel", Frame{12, &Cancel{Reason: "abort"}}},
		{"handoff", Frame{40, &Handoff{
			Flow: flow6(), Service: "web", Delivery: DeliverDescriptor, Epoch: 1, Limit: time.Second, Snapshot: []byte("snap"), Socket: "/run/s", Granted: true,
		}}},
		{"locate", Frame{41, &Locate{Flow: flow4(), Age: 250 * time.Millisecond}}},
		{"located", Frame{42, &Located{Present: true}}},
		{"import fresh", Frame{43, &Import{Flow: flow4(), Epoch: 2, Service: "web", Fresh: true}}},
		{"lease", Frame{13, &Lease{Flow: flow4(), Epoch: 2, To: "web-2", TTL: time.Minute}}},
		{"leased", Frame{14, &Leased{}}},
		{"commit", Frame{15, &Commit{Flow: flow6(), Epoch: 3}}},
		{"abort", Frame{16, &Abort{Flow: flow4(), Epoch: 3}}},
		{"query", Frame{17, &Query{Flow: flow4()}}},
		{"owner", Frame{18, &Owner{Flow: flow4(), Host: "web-3", Epoch: 9}}},
		{"owner unknown", Frame{19, &Owner{Flow: flow6(), Unknown: true}}},
		{"ended", Frame{20, &Ended{Flow: flow4(), Epoch: 1}}},
		{"ended and quiet", Frame{44, &Ended{Flow: flow6(), Quiet: time.Second}}},
		{"register", Frame{21, &Register{Service: "files", Address: "[::]:80", Importer: true, Preparer: true}}},
		{"registered", Frame{22, &Registered{}}},
		{"registered, with loads", Frame{45, &Registered{Loads: true}}},
		{"load", Frame{46, &Load{Service: "files", Load: 7500}}},
		{"load unknown, down", Frame{47, &Load{Service: "files", Unknown: true, Down: true}}},
		{"list", Frame{23, &List{}}},
		{"flows", Frame{24, &Flows{Flows: []FlowStatus{
			{Flow: flow4(), Service: "files", Epoch: 1, Age: time.Hour, Movable: true},
			{Flow: flow6(), Service: "echo", Epoch: 300},
		}, Last: true}}},
		{"prepare", Frame{25, &Prepare{Flow: flow4(), Target: "web-2", Limit: time.Second}}},
		{"prepared", Frame{26, &Prepared{Ahead: []byte("ahead")}}},
		{"export", Frame{27, &Export{Flow: flow6(), Target: "web-2", Limit: 90 * time.Second}}},
		{"exported", Frame{28, &Exported{State: []byte("state"), Epoch: 4, Service: "files"}}},
		{"resume", Frame{29, &Resume{Reason: "target died"}}},
		{"migrated", Frame{30, &Migrated{}}},
		{"import", Frame{31, &Import{Flow: flow4(), Epoch: 5, Service: "files", Ahead: []byte("a"), State: []byte("s")}}},
		{"imported", Frame{32, &Imported{}}},
		{"activate", Frame{33, &Activate{}}},
		{"withdraw", Frame{34, &Withdraw{Reason: "source resumed"}}},
		{"recover", Frame{35, &Recover{Flow: flow4(), Service: "files", Epoch: 5, Target: true}}},
		{"recover source", Frame{35, &Recover{Flow: flow6(), Service: "files", Epoch: 5, Peer: "web-2"}}},
		{"recover late", Frame{35, &Recover{Flow: flow6(), Service: "files", Epoch: 5, Target: true, Late: true}}},
		{"import late", Frame{36, &Import{Flow: flow6(), Epoch: 1, Service: "files", Late: true}}},
		{"list one", Frame{36, &List{Flow: flow6()}}},
		{"committed process", Frame{45, &Committed{Epoch: 2, PID: 4711}}},
		{"process", Frame{46, &Process{
			Token: flow6(), Name: "redis-server", Root: 812, IDs: []uint32{812, 813, 1 << 20}, ShellJob: true, Limit: time.Minute, Bytes: 200 << 20,
			Services: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:6379")}, Local: []netip.AddrPort{netip.MustParseAddrPort("[::]:6379")},
			Files: []File{{Path: "/usr/bin/redis-server", Size: 12345}, {Path: "/dev/null", Size: -1}, {Path: "/var/log/empty"}},
		}}},
		{"image", Frame{47, &Image{File: "pages-1.img", Data: []byte("page")}}},
		{"image pages", Frame{54, &Image{File: "pages-1.img", Data: []byte("page"), Pages: []uint32{7, 8, 1<<32 - 1, 9}}}},
		{"accept process", Frame{55, &Accept{Ahead: 1 << 30}}},
		{"image end of file", Frame{48, &Image{File: "pages-1.img"}}},
		{"image end", Frame{49, &ImageEnd{Files: 29, Bytes: 1 << 40, Digest: 1<<64 - 1}}},
		{"process lazy", Frame{56, &Process{Token: flow6(), Name: "redis-server", Root: 812, Limit: time.Minute, Lazy: true}}},
		{"accept lazy", Frame{57, &Accept{Ahead: 1 << 30, Lazy: true}}},
		{"fetch", Frame{58, &Fetch{Process: 812, Address: 0x7fff12345000, Pages: 64}}},
		{"fetched", Frame{59, &Fetch{}}},
		{"memory", Frame{60, &Memory{Process: 812, Address: 0x7fff12345000, Data: []byte("page")}}},
		{"flow set", Frame{50, &FlowSet{Flows: []tcprepair.Flow{flow4(), flow6()}}}},
		{"lease group", Frame{51, &LeaseGroup{Token: flow6(), To: "web-2", TTL: time.Minute, Services: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:80")}}}},
		{"shut", Frame{52, &Shut{}}},
		{"presence idle", Frame{53, &Presence{Idle: []string{"redis", "web"}}}},
		{"presence", Frame{37, &Presence{Draining: true}}},
		{"cookies", Frame{38, &Cookies{
			Secret: []byte("0123456789abcdef"), Also: []byte("fedcba9876543210"), WindowScale: 8,
			Addresses: [][]byte{{192, 0, 2, 1, 0, 80}, append(netip.MustParseAddr("2001:db8::1").AsSlice(), 1, 187)},
		}}},
		{"cookies taken", Frame{39, &CookiesTaken{}}},
		{"cookies unmodified", Frame{61, &Cookies{Unmodified: true}}},
		{"unmodified", Frame{62, &Unmodified{}}},
		{"unmodified unable", Frame{63, &Unmodified{Unable: "needs Linux 6.9"}}},
		{"unmade", Frame{40, &Unmade{Flow: flow4(), Reason: "no listening socket"}}},
		{"gateway hello", Frame{0, &GatewayHello{Hold: 50 * time.Millisecond}}},
		{"halves", Frame{45, &Halves{Flow: flow4(), Protocol: 6, Halves: [][]byte{[]byte("one"), []byte("two")}}}},
		{"halves 6", Frame{46, &Halves{Flow: flow6(), Protocol: 17, Halves: [][]byte{[]byte("one")}}}},
		{"installed", Frame{46, &Installed{}}},
		{"relocate", Frame{47, &Relocate{Flow: flow6(), To: "web-2"}}},
		{"lease refused", Frame{38, &LeaseRefused{Code: CodeEpoch, Reason: "stale"}}},
	}
}

func encode(t testing.TB, f Frame) []byte {
	t.Helper()
	b, err := Append(nil, f)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestRoundTrip(t *testing.T) {
	for _, test := range frameCases() {
		t.Run(test.name, func(t *testing.T) {
			prefix := []byte("before")
			b, err := Append(prefix, test.frame)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.HasPrefix(b, prefix) {
				t.Fatal("what stood before the frame is gone")
			}
			b = b[len(prefix):]
			if got := binary.BigEndian.Uint32(b); int(got) != len(b)-4 {
				t.Errorf("length field %d, want %d", got, len(b)-4)
			}
			got, err := Decode(b[4:])
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.frame, got, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
				t.Errorf("frame (-want +got):\n%s", diff)
			}
		})
	}
}

// TestKinds: every kind has a case above, a name, and a message that knows its kind.
func TestKinds(t *testing.T) {
	covered := map[Kind]bool{}
	for _, test := range frameCases() {
		covered[test.frame.Message.Kind()] = true
	}
	known := 0
	for k := range 256 {
		kind := Kind(k)
		m := newMessage(kind)
		if m == nil {
			if got, want := kind.String(), fmt.Sprintf("kind %d", k); got != want {
				t.Errorf("name of an unknown kind is %q, want %q", got, want)
			}
			continue
		}
		known++
		if m.Kind() != kind {
			t.Errorf("message of kind %d says kind %d", kind, m.Kind())
		}
		if !covered[kind] {
			t.Errorf("no case for %v", kind)
		}
	}
	if known != len(covered) {
		t.Errorf("%d kinds are known, %d have cases", known, len(covered))
	}
	if KindExport.String() != "Export" {
		t.Errorf("KindExport is called %q", KindExport)
	}
	for _, k := range []Kind{KindExported, KindImport, KindRecover} {
		if !k.Carries() {
			t.Errorf("%v carries no descriptor", k)
		}
	}
}

var update = flag.Bool("update", false, "rewrite golden files")

// TestGolden: a later version reads what this one wrote. A line that changes is a broken promise; new ones are added.
func TestGolden(t *testing.T) {
	path := filepath.Join("testdata", "frames.golden")
	if *update {
		var out strings.Builder
		for _, test := range frameCases() {
			fmt.Fprintf(&out, "%s: %x\n", test.name, encode(t, test.frame))
		}
		if err := os.WriteFile(path, []byte(out.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	golden := map[string]string{}
	for line := range strings.Lines(string(raw)) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), ": ")
		if !ok {
			t.Fatalf("%s: line %q", path, line)
		}
		golden[name] = value
	}
	for _, test := range frameCases() {
		if got := hex.EncodeToString(encode(t, test.frame)); got != golden[test.name] {
			t.Errorf("%s:\n got %s\nwant %s", test.name, got, golden[test.name])
		}
		want, err := hex.DecodeString(golden[test.name])
		if err != nil || len(want) < 4 {
			t.Errorf("%s: golden bytes %q: %v", test.name, golden[test.name], err)
			continue
		}
		got, err := Decode(want[4:])
		if err != nil {
			t.Errorf("%s: %v", test.name, err)
			continue
		}
		if diff := cmp.Diff(test.frame, got, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
			t.Errorf("%s (-want +got):\n%s", test.name, diff)
		}
	}
}

// body builds what follows the length field of a frame.
func body(kind Kind, fields ...[]byte) []byte {
	b := append([]byte{byte(kind)}, make([]byte, 8)...)
	return append(b, bytes.Join(fields, nil)...)
}

func field(tag byte, value ...byte) []byte {
	b := append([]byte{tag}, binary.AppendUvarint(nil, uint64(len(value)))...)
	return append(b, value...)
}

func TestDecodeRefuses(t *testing.T) {
	mapped := append(append(make([]byte, 10), 0xff, 0xff, 192, 0, 2, 1, 0, 80), append(make([]byte, 10), 0xff, 0xff, 192, 0, 2, 2, 1, 1)...)
	tests := []struct {
		name string
		body []byte
		err  error
	}{
		{"nothing", nil, ErrMalformed},
		{"no id", []byte{byte(KindPing), 0, 0}, ErrMalformed},
		{"kind 0", body(0), ErrUnknownKind},
		{"kind 255", body(255), ErrUnknownKind},
		{"tag alone", body(KindPing, []byte{1}), ErrMalformed},
		{"field cut off", body(KindResume, []byte{1, 5, 'a'}), ErrMalformed},
		{"size beyond the frame", body(KindResume, []byte{1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f}), ErrMalformed},
		{"size overflows", body(KindResume, bytes.Repeat([]byte{0xff}, 12)), ErrMalformed},
		{"field twice", body(KindResume, field(1, 'a'), field(1, 'b')), ErrMalformed},
		{"field twice, once critical", body(KindResume, field(1, 'a'), field(1|criticalBit, 'b')), ErrMalformed},
		{"unknown critical field", body(KindPing, field(9|criticalBit)), ErrCritical},
		{"unknown critical field, high tag", body(KindPing, field(100|criticalBit)), ErrCritical},
		{"long integer", body(KindCommitted, field(1, 0, 0, 0, 0, 0, 0, 0, 0, 1)), ErrMalformed},
		{"integer out of range", body(KindCommitted, field(1, 1, 0, 0, 0, 0)), ErrMalformed},
		{"version out of range", body(KindHello, field(1, 1, 0, 0)), ErrMalformed},
		{"flag out of range", body(KindOwner, field(4, 1, 0)), ErrMalformed},
		{"flow of 11 bytes", body(KindQuery, field(1, make([]byte, 11)...)), ErrMalformed},
		{"flow of zeros", body(KindQuery, field(1, make([]byte, 12)...)), ErrMalformed},
		{"flow of mapped addresses", body(KindQuery, field(1, mapped...)), ErrMalformed},
		{"duration above a day", body(KindExport, field(3, 0x7f, 0xff, 0xff, 0xff, 0xff)), ErrMalformed},
		{"long text", body(KindResume, field(1, make([]byte, maxText+1)...)), ErrMalformed},
		{"list cut in the length", body(KindHeld, field(1, 0, 0, 0)), ErrMalformed},
		{"list cut in the element", body(KindHeld, field(1, 0, 0, 0, 2, 'a')), ErrMalformed},
		{"list element of 4 GiB", body(KindHeld, field(1, 0xff, 0xff, 0xff, 0xff, 'a')), ErrMalformed},
		{"status malformed", body(KindFlows, field(1, 0, 0, 0, 2, 1, 9)), ErrMalformed},
		{"status with a critical field", body(KindFlows, field(1, 0, 0, 0, 2, 20|criticalBit, 0)), ErrMalformed},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if f, err := Decode(test.body); !errors.Is(err, test.err) {
				t.Errorf("got %+v, %v; want %v", f.Message, err, test.err)
			}
		})
	}
}

// TestDecodeSkips: what a later version may add does not disturb this one.
func TestDecodeSkips(t *testing.T) {
	tests := []struct {
		name string
		body []byte
	}{
		{"unknown field first", body(KindResume, field(30, 1, 2, 3), field(1, 'x'))},
		{"unknown field last", body(KindResume, field(1, 'x'), field(30))},
		{"high tag", body(KindResume, field(100, 1), field(1, 'x'), field(100, 2))},
		{"known field marked critical", body(KindResume, field(1|criticalBit, 'x'))},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			f, err := Decode(test.body)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(Message(&Resume{Reason: "x"}), f.Message); diff != "" {
				t.Errorf("message (-want +got):\n%s", diff)
			}
		})
	}
}

func TestAppendRefuses(t *testing.T) {
	before := []byte("before")
	b, err := Append(before, Frame{1, &Prepared{Ahead: make([]byte, MaxFrame)}})
	if !errors.Is(err, ErrTooLarge) || string(b) != "before" {
		t.Errorf("got %q, %v; want what was there, and ErrTooLarge", b, err)
	}
	largest := Frame{1, &Prepared{Ahead: make([]byte, MaxFrame-9-4)}}
	if b := encode(t, largest); len(b) != MaxFrame+4 {
		t.Errorf("largest frame has %d bytes, want %d", len(b), MaxFrame+4)
	}
	f, err := Decode(encode(t, Frame{1, &Resume{Reason: strings.Repeat("x", 2*maxText)}})[4:])
	if err != nil {
		t.Fatal(err)
	}
	if m, ok := f.Message.(*Resume); !ok || len(m.Reason) != maxText {
		t.Errorf("long text came through as %T, want it cut to %d bytes", f.Message, maxText)
	}
}

func FuzzDecode(f *testing.F) {
	for _, test := range frameCases() {
		f.Add(encode(f, test.frame)[4:])
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		first, err := Decode(raw)
		if err != nil {
			if !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrCritical) && !errors.Is(err, ErrUnknownKind) {
				t.Fatalf("error of no kind: %v", err)
			}
			return
		}
		b, err := Append(nil, first)
		if err != nil {
			if errors.Is(err, ErrTooLarge) && len(raw) > MaxFrame/2 {
				return
			}
			t.Fatalf("%v does not encode: %v", first.Message.Kind(), err)
		}
		second, err := Decode(b[4:])
		if err != nil {
			t.Fatalf("%v does not decode again: %v", first.Message.Kind(), err)
		}
		again, err := Append(nil, second)
		if err != nil || !bytes.Equal(b, again) {
			t.Fatalf("%v is not stable: %x, %x", first.Message.Kind(), b, again)
		}
	})
}

func FuzzSplit(f *testing.F) {
	f.Add(0, uint8(1))
	f.Add(ChunkSize, uint8(2))
	f.Add(3*ChunkSize+1, uint8(3))
	f.Fuzz(func(t *testing.T, size int, blob uint8) {
		size = min(max(size, 0), 8*ChunkSize)
		value := make([]byte, size)
		for i := range value {
			value[i] = byte(i % 251)
		}
		var a Assembly
		chunks, tail := Split(Blob(blob%3+1), value)
		for _, c := range chunks {
			if err := a.Add(c, size); err != nil {
				t.Fatal(err)
			}
		}
		got := map[Blob]func([]byte) []byte{BlobState: a.State, BlobSnapshot: a.Snapshot, BlobAhead: a.Ahead}[Blob(blob%3+1)](tail)
		if !bytes.Equal(got, value) {
			t.Fatalf("%d bytes of value %d came back as %d", size, blob%3+1, len(got))
		}
	})
}

func TestAssemblyTake(t *testing.T) {
	var a Assembly
	for _, c := range []*Chunk{{BlobState, []byte("st")}, {BlobAhead, []byte("ah")}, {BlobState, []byte("ate")}, {BlobReceived, []byte("rc")}} {
		if err := a.Add(c, 100); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct{ got, want string }{
		{string(a.TakeState()), "state"},
		{string(a.TakeState()), ""},
		{string(a.TakeAhead()), "ah"},
		{string(a.TakeAhead()), ""},
		{string(a.Received()), "rc"},
		{string(a.State([]byte("tail"))), "tail"},
	} {
		if tt.got != tt.want {
			t.Errorf("%q, want %q", tt.got, tt.want)
		}
	}
}

func TestAssemblyRefuses(t *testing.T) {
	var a Assembly
	if err := a.Add(&Chunk{Blob: 99, Data: []byte("x")}, 100); !errors.Is(err, ErrMalformed) {
		t.Errorf("unknown value: %v, want ErrMalformed", err)
	}
	for i := range 3 {
		err := a.Add(&Chunk{Blob: BlobState, Data: make([]byte, 40)}, 100)
		if want := i == 2; errors.Is(err, ErrTooLarge) != want {
			t.Errorf("chunk %d: %v, too large is %t", i, err, want)
		}
	}
}

func TestNegotiate(t *testing.T) {
	tests := []struct {
		name     string
		min, max uint16
		want     uint16
		err      error
	}{
		{"same", 1, 1, 1, nil},
		{"newer peer", 1, 9, 1, nil},
		{"too new a peer", 2, 9, 0, ErrVersion},
		{"says nothing", 0, 0, 0, ErrVersion},
		{"upside down", 9, 1, 0, ErrVersion},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, err := Negotiate(&Hello{Min: test.min, Max: test.max, Name: "peer"})
			if got != test.want || !errors.Is(err, test.err) {
				t.Errorf("got %d, %v; want %d, %v", got, err, test.want, test.err)
			}
		})
	}
}

func TestCodeString(t *testing.T) {
	seen := map[string]Code{}
	for c := CodeUnspecified; c <= CodeVersion; c++ {
		s := c.String()
		if before, ok := seen[s]; ok || strings.HasPrefix(s, "code ") {
			t.Errorf("code %d is called %q, as is %d", uint8(c), s, before)
		}
		seen[s] = c
	}
	if got := Code(200).String(); got != "code 200" {
		t.Errorf("unknown code is called %q", got)
	}
}
