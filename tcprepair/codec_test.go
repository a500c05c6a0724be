// SPDX-License-Identifier: Apache-2.0

package tcprepair

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// snapshots is one table for encoding, decoding and fuzzing; the names are those of the golden files.
func snapshots() map[string]*Snapshot {
	full := &Snapshot{
		Flow:       NewFlow(netip.MustParseAddrPort("198.51.100.1:443"), netip.MustParseAddrPort("192.0.2.7:40312")),
		Mapped:     true,
		State:      CloseWait,
		Negotiated: Negotiated{MSS: 1460, Timestamps: true, SACK: true, WindowScaling: true, SendScale: 7, ReceiveScale: 10, ECN: true},
		Timestamp:  0xcafe0001,
		SendSeq:    1<<32 - 3, // the queues wrap around
		Unacked:    []byte("sent"),
		Unsent:     []byte("to be sent"),
		ReceiveSeq: 100,
		Received:   []byte("GET / HTTP/1.1\r\n"),
		Window:     Window{LastUpdate: 117, Send: 64256, MaxSend: 65535, Receive: 65536, Announced: 117},
		Options: Options{
			KeepAlive: true, KeepIdle: 15, KeepInterval: 16, KeepCount: 3, NoDelay: true, Cork: true, UserTimeout: 20000, FinTimeout: 10,
			NotSentLowWater: 16384, Linger: true, LingerSeconds: 5, TrafficClass: 0x10, HopLimit: 33, Priority: 4, Mark: 1 << 31,
			OOBInline: true, ReceiveLowWater: 10, PeekOffset: 6, NonBlocking: true, SendBuffer: 425984, ReceiveBuffer: 1 << 20,
			SendBufferLocked: true, ReceiveBufferLocked: true, WindowClamp: 1 << 19, MaxPacingRate: 1 << 33, Congestion: "bbr", Device: "eth0",
		},
		Advice: Advice{
			CongestionWindow: 200, SlowStartThreshold: 0x7fffffff, RTT: 20 * time.Millisecond, RTTVar: 3 * time.Millisecond,
			MinRTT: 19 * time.Millisecond, PacingRate: 1 << 32,
		},
	}
	bare := &Snapshot{
		Flow:       NewFlow(netip.MustParseAddrPort("[2001:db8::1]:80"), netip.MustParseAddrPort("[2001:db8::7]:1024")),
		State:      FinWait2,
		FinSent:    true,
		Negotiated: Negotiated{MSS: 1220},
		Options:    Options{V6Only: true},
	}
	due := &Snapshot{
		Flow:       full.Flow,
		State:      Established,
		AckDue:     true,
		Negotiated: Negotiated{MSS: 1460},
		ReceiveSeq: 7,
		Window:     Window{Send: 1000, MaxSend: 1000, Receive: 1000, Announced: 5},
	}
	return map[string]*Snapshot{"close-wait-mapped-full": full, "fin-wait2-v6-bare": bare, "established-ack-due": due}
}

func encode(tb testing.TB, s *Snapshot) []byte {
	tb.Helper()
	b, err := s.MarshalBinary()
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// TestGolden reads what the first version wrote, and writes the same. UPDATE_GOLDEN=1 rewrites the files.
func TestGolden(t *testing.T) {
	for name, want := range snapshots() {
		path := filepath.Join("testdata", name+".snapshot")
		if os.Getenv("UPDATE_GOLDEN") != "" {
			if err := os.WriteFile(path, encode(t, want), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		got, err := Decode(b, Limits{})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if d := cmp.Diff(want, got, cmpopts.EquateEmpty(), cmpopts.EquateComparable(netip.AddrPort{})); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
		if !bytes.Equal(encode(t, want), b) {
			t.Errorf("%s is encoded differently now: a new version needs a new number", name)
		}
	}
}

// seal computes length and checksum anew, for damage that they do not tell of.
func seal(b []byte) []byte {
	b = b[:len(b)-sumBytes]
	binary.BigEndian.PutUint32(b[headerBytes-4:], uint32(len(b)-headerBytes+sumBytes))
	return binary.BigEndian.AppendUint32(b, castagnoli(b))
}

// with returns the encoded snapshot with a section at its end.
func with(b []byte, kind uint16, payload string) []byte {
	b = appendBytes(bytes.Clone(b[:len(b)-sumBytes]), kind, []byte(payload))
	return seal(append(b, 0, 0, 0, 0))
}

func TestDecodeRefuses(t *testing.T) {
	full := encode(t, snapshots()["close-wait-mapped-full"])
	for i := range full {
		if s, err := Decode(full[:i], Limits{}); err == nil {
			t.Errorf("cut after %d of %d bytes: %+v", i, len(full), s)
		}
		damaged := bytes.Clone(full)
		damaged[i] ^= 1
		if s, err := Decode(damaged, Limits{}); err == nil {
			t.Errorf("with a bit of byte %d flipped: %+v", i, s)
		}
	}
	newer := bytes.Clone(full)
	newer[len(magicSnapshot)+1]++
	for _, c := range []struct {
		name string
		b    []byte
		lim  Limits
		want error
	}{
		{"nothing", nil, Limits{}, ErrCorrupt},
		{"trailing byte", append(bytes.Clone(full), 0), Limits{}, ErrCorrupt},
		{"newer version", seal(newer), Limits{}, ErrVersion},
		{"unknown critical section", with(encode(t, snapshots()["fin-wait2-v6-bare"]), 0x7fff, "x"), Limits{}, ErrCorrupt}, // out of order
		{"large queue", full, Limits{QueueBytes: 13}, ErrTooLarge},
		{"section twice", with(full, kindCongestion, "bbr"), Limits{}, ErrCorrupt},
	} {
		var op *OpError
		if _, err := Decode(c.b, c.lim); !errors.Is(err, c.want) || !errors.As(err, &op) {
			t.Errorf("%s: got %v, want %v", c.name, err, c.want)
		}
	}
	if _, err := Decode(with(full, 0xfffe, "from a later version"), Limits{}); err != nil {
		t.Errorf("unknown optional section: %v", err)
	}
}

// TestUnknownCritical puts an unknown section and an unknown option where they belong in the order.
func TestUnknownCritical(t *testing.T) {
	s := &Snapshot{}
	section := appendBytes(nil, 0x7fff, []byte("x"))
	if err := eachSection(section, s.decodeSection); !errors.Is(err, ErrVersion) {
		t.Errorf("section: %v", err)
	}
	var o Options
	if err := o.decode([]byte{0, 99, 0, 0, 0, 1}); !errors.Is(err, ErrVersion) {
		t.Errorf("option: %v", err)
	}
	if err := o.decode([]byte{0x80, 99, 0, 0, 0, 1}); err != nil || o != (Options{}) {
		t.Errorf("optional option: %v", err)
	}
}

// TestValidate contradicts one thing after the other.
func TestValidate(t *testing.T) {
	for name, spoil := range map[string]func(*Snapshot){
		"no flow":              func(s *Snapshot) { s.Flow = Flow{} },
		"mapped IPv6":          func(s *Snapshot) { s.Flow = snapshots()["fin-wait2-v6-bare"].Flow },
		"listener":             func(s *Snapshot) { s.State = listen },
		"FIN in CLOSE_WAIT":    func(s *Snapshot) { s.FinSent = true },
		"no FIN in FIN_WAIT2":  func(s *Snapshot) { s.State, s.Unacked, s.Unsent = FinWait2, nil, nil },
		"unsent behind FIN":    func(s *Snapshot) { s.State, s.FinSent = LastAck, true },
		"unacked in FIN_WAIT2": func(s *Snapshot) { s.State, s.FinSent, s.Unsent = FinWait2, true, nil },
		"no MSS":               func(s *Snapshot) { s.Negotiated.MSS = 0 },
		"large scale":          func(s *Snapshot) { s.Negotiated.SendScale = 15 },
		"scale without option": func(s *Snapshot) { s.Negotiated.WindowScaling = false },
		"timestamp without":    func(s *Snapshot) { s.Negotiated.Timestamps = false },
		"window above maximum": func(s *Snapshot) { s.Window.MaxSend = 1 },
		"announced the future": func(s *Snapshot) { s.Window.Announced += 1000 },
		"updated by future":    func(s *Snapshot) { s.Window.LastUpdate += 1 << 20 },
		"traffic class":        func(s *Snapshot) { s.Options.TrafficClass = 256 },
		"negative number":      func(s *Snapshot) { s.Options.KeepIdle = 1 << 31 },
		"long name":            func(s *Snapshot) { s.Options.Congestion = "a name of 16 bytes" },
	} {
		s := snapshots()["close-wait-mapped-full"]
		if err := s.validate(Limits{}); err != nil {
			t.Fatal(err)
		}
		spoil(s)
		if _, err := s.MarshalBinary(); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, s := range snapshots() {
		b := encode(f, s)
		f.Add(b)
		f.Add(with(b, 0xfffe, "later"))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) >= headerBytes+sumBytes {
			b = seal(bytes.Clone(b)) // else nothing gets past the checksum
		}
		s, err := Decode(b, Limits{QueueBytes: 1 << 16})
		if err != nil {
			return
		}
		again, err := Decode(encode(t, s), Limits{QueueBytes: 1 << 16})
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(s, again, cmpopts.EquateEmpty(), cmpopts.EquateComparable(netip.AddrPort{})); d != "" {
			t.Error(d)
		}
	})
}
