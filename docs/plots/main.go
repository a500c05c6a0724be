// SPDX-License-Identifier: Apache-2.0

// Command plots draws the figures of docs/sara.md, with the numbers that stand beside them:
//
//	go generate ./docs/plots
//
// It draws the same on every run; a test holds that what is committed is what it draws.
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
)

//go:generate go run . -dir .

func main() {
	dir := flag.String("dir", "docs/plots", "where the files are written")
	flag.Parse()
	if err := run(*dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(dir string) error {
	files, err := drawAll()
	if err != nil {
		return err
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil { //nolint:gosec // documentation
			return err
		}
	}
	return nil
}

// drawAll returns all files by name.
func drawAll() (map[string][]byte, error) {
	files := make(map[string][]byte)
	for _, draw := range []func(map[string][]byte) error{balance, overload} {
		if err := draw(files); err != nil {
			return nil, err
		}
	}
	return files, nil
}
