// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"bytes"
	"testing"
)

func FuzzFrame(f *testing.F) {
	f.Add([]byte{0x81, 0x80, 1, 2, 3, 4})
	f.Add([]byte{0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58}) // RFC 6455, 5.7
	f.Add([]byte{0x82, 0xfe, 0x01, 0x00, 0, 0, 0, 0})
	f.Add([]byte{0x82, 0xff, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 9})
	f.Fuzz(func(t *testing.T, b []byte) {
		fr, rest, ok, err := parseFrame(b)
		if err != nil || !ok {
			if !bytes.Equal(rest, b) {
				t.Error("bytes of an unfinished frame were taken")
			}
			return
		}
		if len(fr.payload) > maxMessage || len(rest)+len(fr.payload)+6 > len(b) {
			t.Errorf("payload of %d and rest of %d bytes out of %d", len(fr.payload), len(rest), len(b))
		}
		if a := fr.answer(); !bytes.HasSuffix(a, fr.payload) {
			t.Error("the answer has another payload")
		}
	})
}

func TestFrameOfRFC(t *testing.T) {
	b := []byte{0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58}
	for i := range b {
		if _, _, ok, err := parseFrame(b[:i]); ok || err != nil {
			t.Errorf("%d of %d bytes: whole %v, error %v", i, len(b), ok, err)
		}
	}
	f, rest, ok, err := parseFrame(append(b, 1))
	if !ok || err != nil || string(f.payload) != "Hello" || len(rest) != 1 {
		t.Errorf("%q, rest %v, whole %v, error %v", f.payload, rest, ok, err)
	}
	if _, _, _, err := parseFrame([]byte{0x81, 0x05}); err == nil {
		t.Error("a frame without a mask was taken")
	}
}
