// SPDX-License-Identifier: Apache-2.0

package tcprepair

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"testing"
	"time"
)

// libsoccrRounds is how often the peer saves and restores one connection.
const libsoccrRounds = 20000

// BenchmarkLibsoccr measures CRIU's library in C with the same connections, for comparison: save is BenchmarkFreezeTake's counterpart, restore
// BenchmarkRestoreThaw's. REHOME_LIBSOCCR names its program, which .ci/libsoccr builds.
func BenchmarkLibsoccr(b *testing.B) {
	program := os.Getenv("REHOME_LIBSOCCR")
	if program == "" {
		b.Skip("REHOME_LIBSOCCR is not set: .ci/libsoccr builds the program, make bench sets it")
	}
	for _, q := range benchQueues() {
		b.Run(q.name, func(b *testing.B) {
			save, restore, err := runLibsoccr(b, program, q)
			if err != nil {
				b.Fatal(err)
			}
			b.Run("save", func(b *testing.B) { report(b, each(save)) })
			b.Run("restore", func(b *testing.B) { report(b, each(restore)) })
		})
	}
}

func each(all []time.Duration) func(func(time.Duration)) {
	return func(f func(time.Duration)) {
		for _, d := range all {
			f(d)
		}
	}
}

// runLibsoccr gives the program a connection as bench makes it, in its host.
func runLibsoccr(b *testing.B, program string, q queued) (save, restore []time.Duration, err error) {
	w, p := benchPair(b, q)
	var out, problems bytes.Buffer
	w.a.do(func() {
		f := os.NewFile(uintptr(p.server), "connection")
		p.server = -1
		cmd := exec.Command(program, strconv.Itoa(libsoccrRounds))
		cmd.ExtraFiles, cmd.Stdout, cmd.Stderr = []*os.File{f}, &out, &problems
		if err = cmd.Start(); err == nil {
			// The program must be the only one that has it: two sockets of one connection cannot be.
			err = f.Close()
			if waited := cmd.Wait(); waited != nil {
				err = fmt.Errorf("%w: %s", waited, problems.Bytes())
			}
		}
	})
	if err != nil {
		return nil, nil, err
	}
	lines := bufio.NewScanner(&out)
	for lines.Scan() {
		var s, r int64
		var queued int
		if _, err := fmt.Sscan(lines.Text(), &s, &r, &queued); err != nil {
			return nil, nil, fmt.Errorf("%q: %w", lines.Text(), err)
		}
		if queued != q.received+q.unacked {
			return nil, nil, fmt.Errorf("%d bytes were queued, want %d", queued, q.received+q.unacked)
		}
		save, restore = append(save, time.Duration(s)), append(restore, time.Duration(r))
	}
	return save, restore, lines.Err()
}
