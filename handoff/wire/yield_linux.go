// SPDX-License-Identifier: Apache-2.0

package wire

import "golang.org/x/sys/unix"

// Yield lets who waits for this processor run first. A write to a socket wakes the reader on the writer's processor, as if the writer were about to
// sleep (wake_up_interruptible_sync_poll); a writer with other things to do would keep it waiting, even while other processors are idle.
func Yield() { _, _, _ = unix.Syscall(unix.SYS_SCHED_YIELD, 0, 0, 0) }
