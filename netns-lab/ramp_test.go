// SPDX-License-Identifier: Apache-2.0

package netnslab_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"
	"testing/iotest"

	netnslab "github.com/rehome-net/rehome/netns-lab"
)

func TestRampIsTheRamp(t *testing.T) {
	const size = 200_000
	want := make([]byte, size)
	for i := range want {
		want[i] = byte(i % 251)
	}
	for _, start := range []int64{0, 1, 250, 251, 65536, 199_999, size} {
		if err := iotest.TestReader(netnslab.NewRamp(start, size-start), want[start:]); err != nil {
			t.Errorf("from %d: %v", start, err)
		}
	}
	endless := netnslab.NewRamp(5, -1)
	got := make([]byte, size-5)
	if _, err := io.ReadFull(endless, got); err != nil || !bytes.Equal(got, want[5:]) || endless.Pos() != size {
		t.Errorf("endless: %v, at %d", err, endless.Pos())
	}
}

func TestRampVerifierFindsEveryFault(t *testing.T) {
	const size = 100_000
	ramp, err := io.ReadAll(netnslab.NewRamp(0, size))
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name   string
		stream []byte
		at     int64 // of the first difference; size if none
	}{
		{"right", ramp, size},
		{"one byte lost", slices.Delete(slices.Clone(ramp), 4096, 4097), 4096},
		{"one byte doubled", slices.Insert(slices.Clone(ramp), 4096, ramp[4095]), 4096},
		{"a segment lost", slices.Delete(slices.Clone(ramp), 1448, 2896), 1448},
		{"a segment doubled", slices.Insert(slices.Clone(ramp), 2896, ramp[1448:2896]...), 2896},
		{"a page of zeros", func() []byte { s := slices.Clone(ramp); clear(s[8193:12289]); return s }(), 8193},
		{"first byte", append([]byte{9}, ramp...), 0},
		{"last byte", append(slices.Clone(ramp[:size-1]), 0), size - 1},
	} {
		for _, chunk := range []int{1, 250, 251, 1448, 1 << 20} {
			v := netnslab.NewRampVerifier(0)
			_, err := io.CopyBuffer(struct{ io.Writer }{v}, struct{ io.Reader }{bytes.NewReader(test.stream)}, make([]byte, chunk))
			if v.Pos() != test.at {
				t.Errorf("%s in chunks of %d: at %d (%v), want %d", test.name, chunk, v.Pos(), err, test.at)
			}
			if fault := test.at < size; errors.Is(err, netnslab.ErrMismatch) != fault {
				t.Errorf("%s in chunks of %d: error %v", test.name, chunk, err)
			}
			if test.at < size {
				if _, again := v.Write(ramp[test.at:]); !errors.Is(again, netnslab.ErrMismatch) {
					t.Errorf("%s: the fault is forgotten: %v", test.name, again)
				}
			}
		}
	}
}

func FuzzRamp(f *testing.F) {
	f.Add(uint32(0), uint16(1000), uint16(7), false)
	f.Fuzz(func(t *testing.T, start uint32, size, split uint16, spoil bool) {
		data, err := io.ReadAll(netnslab.NewRamp(int64(start), int64(size)))
		if err != nil || len(data) != int(size) {
			t.Fatalf("%d bytes, %v", len(data), err)
		}
		at := min(int(split), len(data))
		spoil = spoil && at < len(data)
		if spoil {
			data[at]++
		}
		v := netnslab.NewRampVerifier(int64(start))
		_, err = v.Write(data[:at/2])
		if err == nil {
			_, err = v.Write(data[at/2:])
		}
		if spoil != errors.Is(err, netnslab.ErrMismatch) || spoil && v.Pos() != int64(start)+int64(at) {
			t.Fatalf("spoiled %t at %d: %v at %d", spoil, at, err, v.Pos())
		}
	})
}

func BenchmarkRampVerifier(b *testing.B) {
	data, err := io.ReadAll(netnslab.NewRamp(0, 251<<10))
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(data)))
	v := netnslab.NewRampVerifier(0)
	for b.Loop() {
		if _, err := v.Write(data); err != nil {
			b.Fatal(err)
		}
	}
}

func ExampleRampVerifier() {
	v := netnslab.NewRampVerifier(0)
	_, err := v.Write([]byte{0, 1, 2, 4, 5})
	fmt.Println(err)
	// Output: stream differs at byte 3: got 0x04, want 0x03
}
