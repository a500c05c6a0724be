// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// DownloadCost is one long download by curl, and what it cost. The costs are seconds of processor time for each gigabyte (10^9 bytes).
type DownloadCost struct {
	Bytes         int64
	MegabitsPerS  float64
	Front, Server float64
	// Client is curl's.
	Client float64
	// FrontSent is what came from the front at the switch for each byte of the download: about 1 behind a proxy, little where answers go straight
	// back. It has no unit.
	FrontSent float64
	// FrontBPF is what the BPF programs at the front's interface ran.
	FrontBPF float64
	// Machine is what the machine's processors did in that time, whatever for: softirqs of all hosts are in it wherever they ran, and so is everything
	// else on the machine. It is a comparison's fair figure on an otherwise idle machine only; see cpuTime for what the
	// others count.
	Machine float64
}

// MeasureDownload downloads the file /big of nginx through a front once. The server should have it in memory: WarmUp sees to that.
func MeasureDownload(ctx context.Context, f *Farm, front Front) (_ DownloadCost, err error) {
	if err := need("curl"); err != nil {
		return DownloadCost{}, err
	}
	target, err := front.Target(f, Files, false)
	if err != nil {
		return DownloadCost{}, err
	}
	stats, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
	if err != nil {
		return DownloadCost{}, fmt.Errorf("BPF statistics: %w", err)
	}
	defer func() { err = errors.Join(err, stats.Close()) }()
	before, err := f.spent(front)
	if err != nil {
		return DownloadCost{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	cmd := f.Client().Command(ctx, "curl", "--silent", "--show-error", "--fail", "--output", "/dev/null",
		"--write-out", "%{size_download} %{speed_download}", fmt.Sprintf("http://%v/big", target))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return DownloadCost{}, fmt.Errorf("curl: %w: %s", err, stderr.Bytes())
	}
	after, err := f.spent(front)
	if err != nil {
		return DownloadCost{}, err
	}
	d, err := parseCurl(out)
	if err != nil {
		return DownloadCost{}, err
	}
	if d.Bytes != f.cfg.BigSize {
		return d, fmt.Errorf("curl: %d bytes of %d", d.Bytes, f.cfg.BigSize)
	}
	each := func(t time.Duration) float64 { return t.Seconds() / (float64(d.Bytes) / 1e9) }
	d.Front, d.Server = each(after.front-before.front), each(after.server-before.server)
	d.FrontBPF, d.Machine = each(after.bpf-before.bpf), each(after.machine-before.machine)
	d.FrontSent = float64(after.sent-before.sent) / float64(d.Bytes)
	d.Client = each(cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime())
	return d, nil
}

// WarmUp reads what MeasureDownload downloads into the server's memory.
func WarmUp(ctx context.Context, f *Farm) error {
	_, err := MeasureDownload(ctx, f, Direct())
	return err
}

// parseCurl reads what MeasureDownload lets curl write: bytes, and bytes per second.
func parseCurl(out []byte) (d DownloadCost, err error) {
	fields := bytes.Fields(out)
	if len(fields) != 2 {
		return d, fmt.Errorf("curl: %q", out)
	}
	if d.Bytes, err = strconv.ParseInt(string(fields[0]), 10, 64); err != nil {
		return d, fmt.Errorf("curl: %w", err)
	}
	rate, err := strconv.ParseFloat(string(fields[1]), 64)
	if err != nil {
		return d, fmt.Errorf("curl: %w", err)
	}
	d.MegabitsPerS = rate * 8 / 1e6
	return d, nil
}

// spent is what has been used up to now.
type spent struct {
	front, server, bpf, machine time.Duration
	sent                        uint64 // bytes, by the front's link
}

func (f *Farm) spent(front Front) (s spent, err error) {
	if d, ok := front.(FrontDaemon); ok {
		pids, err := d.Processes()
		if err != nil {
			return s, err
		}
		if s.front, err = cpuTime(pids); err != nil {
			return s, err
		}
	}
	pids, err := f.processes(NginxHost)
	if err != nil {
		return s, err
	}
	if s.server, err = cpuTime(pids); err != nil {
		return s, err
	}
	if s.bpf, err = bpfTime(f.host(FrontHost)); err != nil {
		return s, err
	}
	port, err := f.host(FrontHost).Port() // packets may skip the interface itself
	if err != nil {
		return s, err
	}
	s.sent = port.Received.Bytes
	s.machine, err = machineTime()
	return s, err
}
