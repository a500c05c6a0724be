// SPDX-License-Identifier: Apache-2.0

package tcprepair

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// TestReserve moves connections with the outline sent ahead, while a listener has the port.
func TestReserve(t *testing.T) {
	w := newWire(t)
	for _, f := range []family{v4, v6, mapped} {
		t.Run(string(f), func(t *testing.T) {
			p := w.connect(t, f, nil)
			o, err := ReadOutline(p.server)
			if err != nil {
				t.Fatal(err)
			}
			b, err := o.AppendBinary(nil)
			if err != nil {
				t.Fatal(err)
			}
			ahead, err := DecodeOutline(b)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(o, ahead, cmpopts.EquateComparable(netip.AddrPort{}), cmpopts.IgnoreUnexported(Outline{})); d != "" {
				t.Fatalf("-want +got:\n%s", d)
			}
			var v, other *Reservation
			w.b.do(func() { v, err = Reserve(ahead, RestoreConfig{}) })
			if err != nil {
				t.Fatal(err)
			}
			w.b.do(func() { other, err = Reserve(ahead, RestoreConfig{}) }) // it shares the address until it connects
			if err != nil {
				t.Fatal(err)
			}
			w.hold(true, false)
			w.a.do(func() { err = Freeze(p.server) })
			if err != nil {
				t.Fatal(err)
			}
			s, err := o.Take(p.server, Limits{})
			if err != nil {
				t.Fatal(err)
			}
			if err := Discard(p.server); err != nil {
				t.Fatal(err)
			}
			var r *Restored
			w.b.do(func() { r, err = v.Restore(s) })
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = r.Close() }()
			if _, err := v.Restore(s); !errors.Is(err, ErrState) {
				t.Errorf("a reservation used twice: %v", err)
			}
			w.b.do(func() { _, err = other.Restore(s) })
			if !errors.Is(err, ErrInUse) {
				t.Errorf("a second restore: %v", err)
			}
			w.own(w.b)
			if err := r.Thaw(); err != nil {
				t.Fatal(err)
			}
			w.hold(false, false)
			talk(t, &pair{client: p.client, server: r.FD()})
		})
	}
}

func TestReserveRefuses(t *testing.T) {
	w := newWire(t)
	o := Outline{Flow: NewFlow(netip.MustParseAddrPort("10.71.0.77:80"), netip.MustParseAddrPort(clientV4+":1024"))}
	fds := openFiles(t)
	var err error
	w.b.do(func() { _, err = Reserve(&o, RestoreConfig{}) })
	if !errors.Is(err, ErrAddress) {
		t.Errorf("without the address: %v", err)
	}
	var v *Reservation
	w.b.do(func() { v, err = Reserve(&o, RestoreConfig{FreeBind: true}) })
	if err != nil {
		t.Fatalf("with FreeBind: %v", err)
	}
	if _, err := v.Restore(snapshots()["fin-wait2-v6-bare"]); !errors.Is(err, ErrState) {
		t.Errorf("for another flow: %v", err)
	}
	if _, err := Reserve(&Outline{}, RestoreConfig{}); !errors.Is(err, ErrCorrupt) {
		t.Errorf("an empty outline: %v", err)
	}
	if now := openFiles(t); now != fds {
		t.Errorf("%d descriptors are open, %d were", now, fds)
	}
}

func FuzzDecodeOutline(f *testing.F) {
	for _, s := range snapshots() {
		o := Outline{Flow: s.Flow, Mapped: s.Mapped, Options: s.Options}
		o.Options.MaxPacingRate = 0
		b, err := o.AppendBinary(nil)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) >= headerBytes+sumBytes {
			b = seal(append([]byte(nil), b...))
		}
		o, err := DecodeOutline(b)
		if err != nil {
			return
		}
		b, err = o.AppendBinary(nil)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := DecodeOutline(b); err != nil || *again != *o {
			t.Errorf("%+v became %+v: %v", o, again, err)
		}
	})
}
