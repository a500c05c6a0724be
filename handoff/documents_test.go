// SPDX-License-Identifier: Apache-2.0

package handoff

import (
	"encoding/hex"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/rehome-net/rehome/handoff/wire"
)

func readDocument(t *testing.T, name ...string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(append([]string{"..", "docs"}, name...)...))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestDocumentedServer: the server that docs/server-developers.md prints is the one that compiles.
func TestDocumentedServer(t *testing.T) {
	_, rest, ok := strings.Cut(readDocument(t, "server-developers.md"), "<!-- fileserver -->\n```go\n")
	printed, _, end := strings.Cut(rest, "```")
	if !ok || !end {
		t.Fatal("docs/server-developers.md prints no server")
	}
	_, source, _ := strings.Cut(readDocument(t, "examples", "fileserver", "main.go"), "\n\n")
	if printed != source {
		t.Error("docs/server-developers.md does not print docs/examples/fileserver/main.go (without its licence line) as it is")
	}
}

// TestDocumentedFrames: docs/application-protocol.md lists every kind an application meets by its number, and its
// examples are true.
func TestDocumentedFrames(t *testing.T) {
	text := readDocument(t, "application-protocol.md")
	for k := range 256 {
		kind := wire.Kind(k)
		if _, err := wire.Decode(append([]byte{byte(k)}, make([]byte, 8)...)); err != nil || k > 5 && k < 64 {
			continue
		}
		row := "| " + strings.Join([]string{strconv.Itoa(k), kind.String()}, " | ")
		if !strings.Contains(text, row) {
			t.Errorf("docs/application-protocol.md has no row %q", row)
		}
		if strings.Contains(text, row+" *fd*") != kind.Carries() {
			t.Errorf("docs/application-protocol.md is wrong about the descriptor of %v", kind)
		}
	}
	examples := map[string]wire.Frame{
		"00000009 02 0000000000000005":                                          {ID: 5, Message: &wire.Ping{}},
		"00000019 40 0000000000000001 01 04 6563686f 02 05 3a37303030 03 01 01": {ID: 1, Message: &wire.Register{Service: "echo", Address: ":7000", Importer: true}},
	}
	for printed, f := range examples {
		b, err := wire.Append(nil, f)
		if err != nil {
			t.Fatal(err)
		}
		if got := hex.EncodeToString(b); !strings.HasPrefix(got, strings.ReplaceAll(printed, " ", "")) {
			t.Errorf("%v is %s, not %s", f.Message.Kind(), got, printed)
		}
		for word := range strings.FieldsSeq(printed) {
			if !strings.Contains(text, word) {
				t.Errorf("docs/application-protocol.md does not print %s", word)
			}
		}
	}
}
