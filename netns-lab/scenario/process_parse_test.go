// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestCRIUVersion(t *testing.T) {
	for _, tt := range []struct {
		text         string
		major, minor int
	}{
		{"Version: 4.2.1\n", 4, 2},
		{"Version: 3.17.1\nGitID: v3.17.1\n", 3, 17},
		{"Warn  (criu/kerndat.c:1290): no cache\nVersion: 5.0\n", 5, 0},
		{"Version: later\n", 0, 0},
		{"", 0, 0},
	} {
		if major, minor := criuVersion(tt.text); major != tt.major || minor != tt.minor {
			t.Errorf("%q: %d.%d, want %d.%d", tt.text, major, minor, tt.major, tt.minor)
		}
	}
}

func TestFindCRIU(t *testing.T) {
	old := filepath.Join(t.TempDir(), "criu")
	if err := os.WriteFile(old, []byte("#!/bin/sh\necho Version: 4.1.1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	_, err := FindCRIU(t.Context(), old)
	if err == nil || !strings.Contains(err.Error(), "4.1") || !strings.Contains(err.Error(), ErrNoCRIU.Error()) {
		t.Errorf("4.1.1: %v", err)
	}
	if _, err := FindCRIU(t.Context(), filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("a program that is not there was found")
	}
	fit := filepath.Join(t.TempDir(), "criu")
	if err := os.WriteFile(fit, []byte("#!/bin/sh\necho Version: 4.2\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if got, err := FindCRIU(t.Context(), fit); err != nil || got != fit {
		t.Errorf("4.2: %q %v", got, err)
	}
}

func TestListening(t *testing.T) {
	const text = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:1B58 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0
   1: 0100007F:0050 0100007F:1B59 01 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0
`
	for port, want := range map[uint16]bool{7000: true, 80: false, 7001: false} {
		if got := listening(text, port); got != want {
			t.Errorf("port %d: %v, want %v", port, got, want)
		}
	}
}

func TestErrorLines(t *testing.T) {
	const text = `(00.000) Warn  (criu/kerndat.c:1): no cache
(00.001) Error (criu/util.c:1534): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted
(00.002) Error (criu/sk-inet.c:185): inet: In-flight connection (l) for 2c311e8
(00.003) Error (criu/cr-dump.c:1975): Dumping FAILED.
`
	want := "(00.002) Error (criu/sk-inet.c:185): inet: In-flight connection (l) for 2c311e8; (00.003) Error (criu/cr-dump.c:1975): Dumping FAILED."
	if got := errorLines(text); got != want {
		t.Error(cmp.Diff(want, got))
	}
}

const movedText = `{"moved": 1, "processes": [{"pid": 3, "newPid": 7, "to": "b", "outcome": "moved", "totalMicros": 30, "freezeMicros": 20, "imageBytes": 10}]}`

func TestReadProcessMoved(t *testing.T) {
	got, err := readProcessMoved([]byte(movedText))
	if want := (processMoved{Outcome: "moved", NewPID: 7, TotalMicros: 30, FreezeMicros: 20, ImageBytes: 10}); err != nil || got != want {
		t.Errorf("%+v %v, want %+v", got, err, want)
	}
	for text, want := range map[string]string{
		"":                   "end of JSON",
		`{"processes": []}`:  "0 processes",
		`{"processes":[{}]}`: "as process 0",
		`{"processes":[{"newPid":7,"outcome":"stayed","error":"no room"}]}`: "no room",
	} {
		if _, err := readProcessMoved([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q in it", text, err, want)
		}
	}
}

func TestPack(t *testing.T) {
	source, target := t.TempDir(), t.TempDir()
	want := map[string]string{"pages-1.img": strings.Repeat("page", 100_000), "core-1.img": "", "dump.log": "ended"}
	for name, text := range want {
		if err := os.WriteFile(filepath.Join(source, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var archive bytes.Buffer
	if err := pack(&archive, source); err != nil {
		t.Fatal(err)
	}
	whole := bytes.Clone(archive.Bytes())
	if err := unpack(&archive, target); err != nil {
		t.Fatal(err)
	}
	got := make(map[string]string)
	for name := range want {
		text, err := os.ReadFile(filepath.Join(target, name))
		if err != nil {
			t.Fatal(err)
		}
		got[name] = string(text)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if size, err := directorySize(target); err != nil || size != 400_005 {
		t.Errorf("%d bytes, %v", size, err)
	}
	if err := unpack(bytes.NewReader(whole[:len(whole)/2]), t.TempDir()); err == nil {
		t.Error("half an archive was taken for a whole")
	}
}

func TestProcessTree(t *testing.T) {
	tree, err := processTree(os.Getpid())
	if err != nil || len(tree) == 0 || tree[0] != os.Getpid() {
		t.Errorf("%v %v", tree, err)
	}
	if _, err := processTree(1 << 30); err == nil {
		t.Error("a process that is not there has a tree")
	}
}

func TestMilliseconds(t *testing.T) {
	if got, want := milliseconds([]float64{3, 1, 2}), (Milliseconds{Min: 1, Median: 2, P99: 3, Max: 3}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if got := milliseconds(nil); got != (Milliseconds{}) {
		t.Errorf("of nothing: %+v", got)
	}
}

func FuzzReadProcessMoved(f *testing.F) {
	f.Add([]byte(movedText))
	f.Add([]byte(`{"processes":[{"newPid":-1,"outcome":"moved"}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		if m, err := readProcessMoved(text); err == nil && m.NewPID <= 0 {
			t.Errorf("%q: process %d", text, m.NewPID)
		}
	})
}
