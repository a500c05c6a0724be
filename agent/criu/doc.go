// SPDX-License-Identifier: Apache-2.0

// Package criu takes a tree of processes away from one host and makes it appear on another, with CRIU (criu.org) 4.2 or newer. It
// drives the program, and passes its images on; it knows nothing of packets, of entries, and of who decides.
//
// # In call order
//
//	path, version, err := criu.Find("")       // both hosts
//	tree, err := criu.Inspect(pid)            // source: what it is, and what speaks against moving it
//	err = criu.CheckFiles(tree.Files)         // target: what it needs must be there
//	store, err := criu.NewStore(1 << 30)      // target: room for the image, in memory
//	chamber, err := criu.NewChamber(…, store) // target: namespaces, with a CRIU that waits
//	err = criu.Dump(criu.DumpConfig{          // source
//		BeforeFreeze: …,                      // hold the connections' packets
//		Sink:         …,                      // send each piece to the target: store.Write
//		Stopped:      …,                      // send the manifest; nil ends the tree here, an error lets it go on
//	})
//	err = store.Check(manifest)               // target
//	pid, err := chamber.Restore(restored, resumed)
//
// Both sides can still say no when everything is done: the tree stands still at the source until Stopped returns, and at the target
// until restored does. Who of the two goes on is the caller's decision, and must be only one.
//
// # Images
//
// CRIU writes a tree's memory into pipes, and Sink gets it from there while the tree is being read; what is small stays in memory at the
// source until the dump is complete. Nothing is written to a disk. The target keeps the image in a file system in
// memory that has no name and goes with its last descriptor.
//
// # Memory
//
// Memory can go ahead of the freeze: with Track where the kernel says what has changed (Probe), else with Ahead.Send. Or it follows the restored
// tree: DumpConfig.Lazy leaves it out, RestoreConfig.Fetch asks for it, Pages.Read reads it from the stopped original, Chamber.Give takes it in, and
// Chamber.Wait waits for all of it.
//
// # Namespaces
//
// A tree is restored in PID and mount namespaces of its own: its processes keep their numbers, whatever runs on the host, also while
// the original is still there. Their first process is this program (Init). It dies with the agent until the tree is
// restored, and lives as long as the tree afterwards. To be dumped again, a tree is entered: CRIU sees it as it sees itself.
//
// # What it does not do
//
// It locks no network (NetworkLock SKIP), carries no files, no cgroups, no terminals, and no connection that is being set up.
package criu
