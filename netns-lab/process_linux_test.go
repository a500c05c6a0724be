// SPDX-License-Identifier: Apache-2.0

package netnslab

import (
	"os"
	"os/exec"
	"testing"
)

func TestStopLeavesAnotherProcessAlone(t *testing.T) {
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Skip("needs sleep(1): ", err)
	}
	p, err := processOf(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	other := p
	other.Started-- // had the number before
	if err := other.stop(); err != nil {
		t.Errorf("stop of one long gone: %v", err)
	}
	if now, err := processOf(p.PID); err != nil || now != p {
		t.Errorf("now it is %+v (%v), was %+v", now, err, p)
	}
	if err := p.stop(); err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); err == nil || err.Error() != "signal: terminated" {
		t.Errorf("ended with %v", err)
	}
	if err := p.stop(); err != nil {
		t.Errorf("stop after the end: %v", err)
	}
}

func TestProcessOf(t *testing.T) {
	self, err := processOf(os.Getpid())
	if err != nil || self.Started == 0 {
		t.Errorf("self: %+v, %v", self, err)
	}
	if _, err := processOf(1 << 30); err == nil {
		t.Error("no such process, no error")
	}
}
