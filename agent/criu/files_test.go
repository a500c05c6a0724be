// SPDX-License-Identifier: Apache-2.0

package criu

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestCheckFiles(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "data")
	if err := os.WriteFile(path, []byte("12345"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		files []File
		want  string
	}{
		"nothing":         {nil, ""},
		"the same":        {[]File{{path, 5}, {dir, -1}, {"/dev/null", -1}}, ""},
		"any size":        {[]File{{path, -1}}, ""},
		"missing":         {[]File{{path + "2", 5}}, path + "2 is not there"},
		"another size":    {[]File{{path, 6}}, "has 5 bytes, not 6"},
		"not a file":      {[]File{{dir, 6}}, "no regular file"},
		"many are missed": {[]File{{"/no/1", 1}, {"/no/2", 1}, {"/no/3", 1}, {"/no/4", 1}, {"/no/5", 1}}, "and 2 more"},
	} {
		err := CheckFiles(test.files)
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v, want %q", name, err, test.want)
		}
	}
}
