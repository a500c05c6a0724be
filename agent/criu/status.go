// SPDX-License-Identifier: Apache-2.0

package criu

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// status is what /proc/PID/status says of a process (proc_pid_status(5)). Each list begins with the number in the reader's PID
// namespace and ends with that in the process's own.
type status struct {
	name             string
	state            byte
	pids, pgid, sids []int
	parent, tracer   int
	resident         uint64 // anonymous memory, in bytes
}

// inside returns the process's number as it sees itself.
func (s status) inside() int { return last(s.pids) }

func last(list []int) int {
	if len(list) == 0 {
		return 0
	}
	return list[len(list)-1]
}

var errStatus = errors.New("malformed status of a process")

func parseStatus(text string) (status, error) {
	var s status
	for line := range strings.Lines(text) {
		key, value, ok := strings.Cut(strings.TrimSuffix(line, "\n"), ":")
		if !ok {
			continue
		}
		var err error
		switch key {
		case "Name":
			s.name = strings.TrimSpace(value)
		case "State":
			if v := strings.TrimSpace(value); v != "" {
				s.state = v[0]
			}
		case "PPid":
			s.parent, err = strconv.Atoi(strings.TrimSpace(value))
		case "TracerPid":
			s.tracer, err = strconv.Atoi(strings.TrimSpace(value))
		case "RssAnon", "RssShmem":
			var kib uint64
			kib, err = strconv.ParseUint(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
			s.resident += kib << 10
		case "NSpid":
			s.pids, err = numbers(value)
		case "NSpgid":
			s.pgid, err = numbers(value)
		case "NSsid":
			s.sids, err = numbers(value)
		}
		if err != nil {
			return status{}, fmt.Errorf("%w: %s: %w", errStatus, key, err)
		}
	}
	if len(s.pids) == 0 {
		return status{}, fmt.Errorf("%w: no NSpid", errStatus)
	}
	return s, nil
}

func numbers(text string) ([]int, error) {
	var list []int
	for _, f := range strings.Fields(text) {
		n, err := strconv.Atoi(f)
		if err != nil {
			return nil, err
		}
		list = append(list, n)
	}
	return list, nil
}
