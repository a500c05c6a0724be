// SPDX-License-Identifier: Apache-2.0

package criu

import (
	"errors"
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"
)

func TestIdentity(t *testing.T) {
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	list := Identify(cmd.Process.Pid)
	if len(list) != 1 || list[0].PID != cmd.Process.Pid || list[0].Started == 0 {
		t.Fatalf("%+v", list)
	}
	other := list[0]
	other.Started--
	if err := other.Kill(); !errors.Is(err, unix.ESRCH) {
		t.Errorf("one that had this number before: %v", err)
	}
	if err := list[0].Kill(); err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("it ended by itself")
	}
	if err := list[0].Kill(); !errors.Is(err, unix.ESRCH) {
		t.Errorf("one that has ended: %v", err)
	}
	if list := Identify(cmd.Process.Pid); list != nil {
		t.Errorf("of a tree that has ended: %+v", list)
	}
	if mine, err := startTime(os.Getpid()); err != nil || mine == 0 {
		t.Errorf("%d, %v", mine, err)
	}
}
