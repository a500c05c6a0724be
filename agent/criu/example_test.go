// SPDX-License-Identifier: Apache-2.0

package criu_test

import (
	"fmt"
	"log"

	"github.com/rehome-net/rehome/agent/criu"
)

// Example moves a process within one host: from its own namespaces into new ones. Its connections would have to be held meanwhile.
func Example() {
	path, _, err := criu.Find("")
	if err != nil {
		log.Fatal(err) // says what to install
	}
	tree, err := criu.Inspect(4711)
	if err != nil {
		log.Fatal(err) // says what speaks against it
	}
	store, err := criu.NewStore(1 << 30)
	if err != nil {
		log.Fatal(err)
	}
	defer store.Close()
	chamber, err := criu.NewChamber(criu.RestoreConfig{Path: path, Root: tree.Inside, IDs: tree.IDs, ShellJob: tree.ShellJob}, store)
	if err != nil {
		log.Fatal(err)
	}
	defer chamber.Close() // ends what is in it, unless it has been restored
	ahead := criu.NewAhead(1 << 28)
	if err := ahead.Send(tree.Tree, store.Write); err != nil {
		log.Fatal(err)
	}
	err = criu.Dump(criu.DumpConfig{
		Path: path, PID: tree.PID, Inside: tree.Inside, Processes: len(tree.Tree), ShellJob: tree.ShellJob, Ahead: ahead, Sink: store.Write,
		BeforeFreeze: func() error { return nil },
		Stopped: func(m criu.Manifest) error {
			if err := store.Check(m); err != nil {
				return err
			}
			_, err := chamber.Restore(func(int) error { return nil }, nil)
			return err
		},
	})
	if err != nil {
		log.Fatal(err) // it goes on where it was
	}
}

func ExampleCheckFiles() {
	err := criu.CheckFiles([]criu.File{{Path: "/dev/null", Size: -1}, {Path: "/nonexistent/data", Size: 100}})
	fmt.Println(err)
	// Output: files that the process needs differ: [/nonexistent/data is not there]: give both hosts the same ones
}
