// SPDX-License-Identifier: Apache-2.0

//go:build linux

package forward

import (
	"bytes"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/tcprepair"
)

// FuzzFrame puts frames through both programs, which must agree, and must leave alone what they do not redirect, and of
// what they do, everything but the Ethernet addresses.
func FuzzFrame(f *testing.F) {
	s := newStand(f, Config{})
	for _, c := range fixtures(s.mac) {
		f.Add(c.frame[12:])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < 2+40 || len(b) > 1600 {
			return // BPF_PROG_RUN wants a whole IP header, and no more than a page
		}
		frame := slices.Concat(s.mac, []byte{2, 0, 0, 0, 0, 0x99}, b)
		for _, of := range []*Flows{s.Flows, s.UDP()} {
			for _, flow := range []tcprepair.Flow{flow4(), flow6()} {
				if _, err := of.Adopt(flow, 1, node); err != nil && !errors.Is(err, gate.ErrExists) {
					t.Fatal(err)
				}
			}
		}
		byTCX, first := s.execute(t, TCX, frame)
		byXDP, second := s.execute(t, XDP, frame)
		if byTCX != byXDP || !bytes.Equal(first, second) {
			t.Errorf("tcx: %s, XDP: %s\n%x\n%x", byTCX, byXDP, first, second)
		}
		want := frame
		if byTCX == redirected {
			want = slices.Concat(nodeMAC(), s.mac, frame[12:])
		}
		if byTCX == dropped || !bytes.Equal(first, want) {
			t.Errorf("%s\n got %x\nwant %x", byTCX, first, want)
		}
	})
}

// FuzzSignalling is FuzzFrame for flows that are inspected: what is diverted is whole, and says the same of itself by both programs.
func FuzzSignalling(f *testing.F) {
	s := newStand(f, Config{Divert: true})
	for _, c := range fixtures(s.mac) {
		f.Add(c.frame[12:])
	}
	s.reading(f, time.Hour)
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < 2+40 || len(b) > 1600 {
			return // BPF_PROG_RUN wants a whole IP header, and no more than a page
		}
		frame := slices.Concat(s.mac, []byte{2, 0, 0, 0, 0, 0x99}, b)
		for _, of := range []*Flows{s.Flows, s.UDP()} {
			for _, flow := range []tcprepair.Flow{flow4(), flow6()} {
				if _, err := of.Adopt(flow, 1, node); err != nil && !errors.Is(err, gate.ErrExists) {
					t.Fatal(err)
				}
				if err := of.Inspect(flow, true); err != nil {
					t.Fatal(err)
				}
			}
		}
		byTCX, first := s.execute(t, TCX, frame)
		byXDP, second := s.execute(t, XDP, frame)
		if byTCX != byXDP || !bytes.Equal(first, second) || !bytes.Equal(first[12:], frame[12:]) {
			t.Errorf("tcx: %s, XDP: %s\n%x\n%x", byTCX, byXDP, first, second)
		}
		if byTCX != redirected || bytes.Equal(first[:6], nodeMAC()) {
			return
		}
		// User space finds in it what the kernel has found.
		if _, part := parseFragment(first); part {
			return
		}
		d, _, _, ok := decodeDiverted(first)
		if !ok || d.Reason != Inspected || d.Node != node || d.Flow != flow4() && d.Flow != flow6() {
			t.Errorf("diverted: %+v, %v\n%x", d, ok, first)
		}
	})
}
