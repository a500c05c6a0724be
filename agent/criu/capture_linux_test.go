// SPDX-License-Identifier: Apache-2.0

package criu

import (
	"bytes"
	"errors"
	"os"
	"sync"
	"testing"

	"github.com/rehome-net/rehome/netns-lab/labtest"
)

// TestCapture writes an image as CRIU does, and compares what is passed on, and what the other side counts.
func TestCapture(t *testing.T) {
	labtest.RequireRoot(t)
	dir, err := newMemory(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	var mu sync.Mutex
	got, ends := make(map[string][]byte), make(map[string]int)
	store, err := NewStore(16 << 20)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	c, err := newCapture(dir, "", 1, nil, func(p Piece) error {
		mu.Lock()
		defer mu.Unlock()
		got[p.File] = append(got[p.File], p.Data...)
		if len(p.Data) == 0 {
			ends[p.File]++
		}
		return store.Write(p)
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	// More than the directory has room for: memory is not kept.
	pages := bytes.Repeat([]byte("page"), 1<<20)
	for name, data := range map[string][]byte{"pages-1.img": pages, "core-7.img": []byte("core"), "criu.log": []byte("log")} {
		path := procFD(dir) + "/" + name
		if name == "pages-1.img" {
			path = procFD(c.writers[0]) // as in CRIU, which has it at another number
		}
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
		if err == nil {
			_, err = f.Write(data)
			err = errors.Join(err, f.Close())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	m, err := c.finish()
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Check(m); err != nil {
		t.Error(err)
	}
	if !bytes.Equal(got["pages-1.img"], pages) || string(got["core-7.img"]) != "core" || got["criu.log"] != nil {
		t.Errorf("%d files came, pages of %d bytes", len(got), len(got["pages-1.img"]))
	}
	if len(ends) != 1+sparePipes+1 || int(m.Files) != len(ends) || m.Bytes != uint64(len(pages)+4) {
		t.Errorf("%d ends, %+v", len(ends), m)
	}
}

// TestCaptureRefused lets nobody take the image: who writes it must not wait for ever.
func TestCaptureRefused(t *testing.T) {
	labtest.RequireRoot(t)
	dir, err := newMemory(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	no := errors.New("no")
	c, err := newCapture(dir, "", 1, nil, func(Piece) error { return no })
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	f, err := os.OpenFile(procFD(c.writers[0]), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for err == nil {
		_, err = f.Write(make([]byte, 1<<16))
	}
	if _, err := c.finish(); !errors.Is(err, no) {
		t.Errorf("got %v", err)
	}
}
