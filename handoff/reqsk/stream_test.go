// SPDX-License-Identifier: Apache-2.0

package reqsk

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/rehome-net/rehome/tcprepair"
)

func TestNewStreamErrors(t *testing.T) {
	whole := func() *tcprepair.Snapshot {
		return &tcprepair.Snapshot{Flow: flow4(), State: tcprepair.Established, Negotiated: tcprepair.Negotiated{MSS: 1460}}
	}
	if _, err := newStream(whole()); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		change func(*tcprepair.Snapshot)
		want   error
		says   string
	}{
		{"no flow", func(s *tcprepair.Snapshot) { s.Flow = tcprepair.Flow{} }, ErrAddress, "no flow"},
		{"link-local", func(s *tcprepair.Snapshot) {
			s.Flow = tcprepair.NewFlow(netip.MustParseAddrPort("[fe80::1]:80"), netip.MustParseAddrPort("[fe80::2]:4000"))
		}, ErrAddress, "fe80::2"},
		{"our FIN sent", func(s *tcprepair.Snapshot) { s.State = tcprepair.FinWait1 }, ErrState, "FIN"},
		{"both FINs", func(s *tcprepair.Snapshot) { s.State = tcprepair.LastAck }, ErrState, "LAST"},
		{"no state", func(s *tcprepair.Snapshot) { s.State = 0 }, ErrState, ""},
		{"unacknowledged", func(s *tcprepair.Snapshot) { s.Unacked = []byte("ab") }, ErrUnsent, "2 bytes unacknowledged"},
		{"unsent", func(s *tcprepair.Snapshot) { s.Unsent = []byte("abc") }, ErrUnsent, "3 unsent"},
		{"small MSS", func(s *tcprepair.Snapshot) { s.Negotiated.MSS = 535 }, ErrOption, "535"},
		{"small MSS for IPv6", func(s *tcprepair.Snapshot) { s.Flow, s.Negotiated.MSS = flow6(), 1219 }, ErrOption, "1219"},
		{"scale", func(s *tcprepair.Snapshot) { s.Negotiated.WindowScaling, s.Negotiated.SendScale = true, 15 }, ErrOption, "scale"},
	} {
		s := whole()
		c.change(s)
		if _, err := newStream(s); !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v; want %v with %q", c.name, err, c.want, c.says)
		}
	}
}

func TestEchoed(t *testing.T) {
	for _, c := range []struct {
		name      string
		timestamp uint32
		rtt       time.Duration
		want      uint32
	}{
		{"unknown", 1000, 0, 0},
		{"nonsense", 1000, time.Hour, 0},
		{"negative", 1000, -time.Second, 0},
		{"milliseconds", 1000, 30 * time.Millisecond, 970},
		{"less than one", 1000, 30 * time.Microsecond, 1000},
		{"microseconds", 100_001, 30 * time.Millisecond, 70_001},
		{"around", 10, 30 * time.Millisecond, 1<<32 - 20},
		{"zero means none", 30, 30 * time.Millisecond, 1},
	} {
		if got := echoed(c.timestamp, c.rtt); got != c.want {
			t.Errorf("%s: %d, want %d", c.name, got, c.want)
		}
	}
}

func TestRoom(t *testing.T) {
	s, err := newStream(&tcprepair.Snapshot{
		Flow: flow4(), State: tcprepair.CloseWait, Negotiated: tcprepair.Negotiated{MSS: 1460}, Received: make([]byte, 100_000),
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		window uint32
		from   int
		want   int
	}{
		{1 << 20, 0, 65495}, {1000, 0, 1000}, {1 << 20, 99_000, 1000}, {0, 0, -1}, {1<<32 - 5, 0, -1}, {0, 100_000, 0}, {5, 100_001, 0},
	} {
		if got := s.room(c.window, c.from); got != c.want {
			t.Errorf("window %d, from %d: %d, want %d", c.window, c.from, got, c.want)
		}
	}
	if a, b := s.end(99_999), s.end(100_000); a != 99_999 || b != 100_001 {
		t.Errorf("ends %d and %d: the FIN goes with the last byte", a, b)
	}
}

// The places that the process writes to and reads from are those of the programs.
func TestSlotLayout(t *testing.T) {
	var s reqskSlot
	for name, c := range map[string][2]uintptr{
		"size":     {unsafe.Sizeof(s), slotSize},
		"op":       {unsafe.Offsetof(s.Op), slotOp},
		"ipv6":     {unsafe.Offsetof(s.Ipv6), slotIPv6},
		"tuple":    {unsafe.Offsetof(s.Tuple), slotTuple},
		"attrs":    {unsafe.Offsetof(s.Attrs), slotAttrs},
		"receive":  {unsafe.Offsetof(s.RcvIsn), slotReceive},
		"send":     {unsafe.Offsetof(s.SntIsn), slotSend},
		"payload":  {unsafe.Offsetof(s.Payload), slotPayload},
		"attempt":  {unsafe.Offsetof(s.Attempt), slotAttempt},
		"result":   {unsafe.Offsetof(s.Result), slotResult},
		"outcome":  {unsafe.Offsetof(s.Outcome), slotOutcome},
		"state":    {unsafe.Offsetof(s.State), slotState},
		"received": {unsafe.Offsetof(s.RcvNxt), slotReceived},
		"sent":     {unsafe.Offsetof(s.SndNxt), slotSent},
		"window":   {unsafe.Offsetof(s.Window), slotWindow},
	} {
		if c[0] != c[1] {
			t.Errorf("%s is at %d, want %d", name, c[0], c[1])
		}
	}
	spec, err := loadReqsk()
	if err != nil {
		t.Fatal(err)
	}
	if m := spec.Maps["rehome_lanes"]; m.ValueSize != slotSize || m.MaxEntries != maxLanes {
		t.Errorf("map of %d slots of %d bytes", m.MaxEntries, m.ValueSize)
	}
}

func TestLaneSet(t *testing.T) {
	s, err := newStream(&tcprepair.Snapshot{
		Flow: flow6(), State: tcprepair.Established, SendSeq: 11, ReceiveSeq: 0, Timestamp: 77,
		Negotiated: tcprepair.Negotiated{MSS: 1440, Timestamps: true, SACK: true, WindowScaling: true, SendScale: 3, ReceiveScale: 4, ECN: true},
	})
	if err != nil {
		t.Fatal(err)
	}
	l := &lane{slot: make([]byte, slotSize)}
	l.set(s)
	var got reqskSlot
	if _, err := binary.Decode(l.slot, binary.LittleEndian, &got); err != nil {
		t.Fatal(err)
	}
	want := reqskSlot{Ipv6: 1, RcvIsn: 1<<32 - 1, SntIsn: 10}
	copy(want.Tuple[:], flow6().Remote.Addr().AsSlice())
	copy(want.Tuple[16:], flow6().Local.Addr().AsSlice())
	copy(want.Tuple[32:], []byte{40312 >> 8, 40312 & 0xff, 0, 80})
	a := &want.Attrs
	a.RcvTsecr, a.Mss, a.RcvWscale, a.SndWscale = 77, 1440, 4, 3
	a.EcnOk, a.WscaleOk, a.SackOk, a.TstampOk, a.UsecTsOk = 1, 1, 1, 1, 1
	if got != want {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}
