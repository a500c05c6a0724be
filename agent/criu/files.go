// SPDX-License-Identifier: Apache-2.0

package criu

import (
	"fmt"
	"io/fs"
	"os"
)

// maxMissing is how many missing files an error names.
const maxMissing = 3

// CheckFiles looks whether this host has the files that a tree of another one needs, and returns an error that names those
// which are missing or not the same.
func CheckFiles(files []File) error { return checkFiles(files, os.Stat) }

func checkFiles(files []File, stat func(string) (fs.FileInfo, error)) error {
	var wrong []string
	for _, f := range files {
		info, err := stat(f.Path)
		switch {
		case err != nil:
			wrong = append(wrong, fmt.Sprintf("%s is not there", f.Path))
		case f.Size >= 0 && !info.Mode().IsRegular():
			wrong = append(wrong, fmt.Sprintf("%s is no regular file", f.Path))
		case f.Size >= 0 && info.Size() != f.Size:
			wrong = append(wrong, fmt.Sprintf("%s has %d bytes, not %d", f.Path, info.Size(), f.Size))
		}
	}
	if len(wrong) == 0 {
		return nil
	}
	more := ""
	if len(wrong) > maxMissing {
		more = fmt.Sprintf(" and %d more", len(wrong)-maxMissing)
		wrong = wrong[:maxMissing]
	}
	return fmt.Errorf("files that the process needs differ: %v%s: give both hosts the same ones", wrong, more)
}
