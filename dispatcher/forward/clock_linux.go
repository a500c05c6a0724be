// SPDX-License-Identifier: Apache-2.0

package forward

import (
	"encoding/binary"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

// jiffies is how the kernel's count of ticks tells the time on CLOCK_MONOTONIC. BPF programs read that count with one load; each of
// the kernel's clocks would be a call of 12 ns or more for every packet. The two go together, as the kernel advances its count by that
// clock (tick_do_update_jiffies64, Linux 2.6.21).
type jiffies struct {
	length uint64 // ns
	zero   uint64 // ns, modulo 2^64: when the count was 0
}

// measureJiffies reads both at one time.
func measureJiffies() (j jiffies, err error) {
	var resolution unix.Timespec
	if err := unix.ClockGetres(unix.CLOCK_MONOTONIC_COARSE, &resolution); err != nil {
		return j, fmt.Errorf("length of a tick: %w", err)
	}
	j.length = uint64(resolution.Nano())
	const sleepable = 1 << 4 // BPF_F_SLEEPABLE, which all of this type are
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "rehome_jiffies", Type: ebpf.Syscall, Flags: sleepable, License: "GPL",
		Instructions: asm.Instructions{
			asm.Mov.Reg(asm.R6, asm.R1),
			asm.FnJiffies64.Call(),
			asm.StoreMem(asm.R6, 0, asm.R0, asm.DWord),
			asm.Mov.Imm(asm.R0, 0),
			asm.Return(),
		},
	})
	if err != nil {
		return j, fmt.Errorf("program that reads jiffies: %w", err)
	}
	defer func() { _ = p.Close() }()
	const tries = 10
	for range tries {
		var before, after unix.Timespec
		var count [8]byte
		_ = unix.ClockGettime(unix.CLOCK_MONOTONIC_COARSE, &before) // cannot fail for this clock
		if _, err := p.Run(&ebpf.RunOptions{Context: count, ContextOut: &count}); err != nil {
			return j, fmt.Errorf("read jiffies: %w", err)
		}
		_ = unix.ClockGettime(unix.CLOCK_MONOTONIC_COARSE, &after)
		j.zero = uint64(before.Nano()) - binary.NativeEndian.Uint64(count[:])*j.length
		if before == after {
			break
		}
		// A tick came between: that makes it a jiffy early or late, which is as good as the clock is.
	}
	return j, nil
}
