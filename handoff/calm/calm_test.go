// SPDX-License-Identifier: Apache-2.0

package calm

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestMain is also the program of the processes that the tests start: what is set here lasts until a process ends.
func TestMain(m *testing.M) {
	switch os.Getenv(roleVariable) {
	case "":
		os.Exit(m.Run())
	case "monitor":
		err := Monitor()
		fmt.Println(errors.Is(err, fs.ErrPermission), err)
		for _, tid := range threads() {
			slack, _ := os.ReadFile(slackPath(tid))
			fmt.Println(tid, strings.TrimSpace(string(slack)))
		}
	case "compare":
		fmt.Println(compare())
	}
}

const roleVariable = "REHOME_TEST_ROLE"

// play runs this program in a role, and returns the lines it prints.
func play(t *testing.T, role string) []string {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), roleVariable+"="+role)
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSpace(string(out)), "\n")
}

// threads returns the process's threads in the order in which they were started.
func threads() (all []int) {
	d, err := os.Open("/proc/self/task")
	if err != nil {
		return nil
	}
	defer d.Close()
	names, _ := d.Readdirnames(-1)
	for _, n := range names {
		tid, _ := strconv.Atoi(n)
		all = append(all, tid)
	}
	return all
}

// busy keeps the process from being at rest until over says so, with system calls now and then.
func busy(over func() bool) {
	for !over() {
		_, _ = os.Stat("/")
		time.Sleep(100 * time.Microsecond)
	}
}

// compare has the monitor wake enough times, then calls Monitor, and returns how often it wakes in as much time.
func compare() (after int, err error) {
	const limit = 10 * time.Second
	tid, err := monitor()
	if err != nil {
		return 0, err
	}
	began, first := time.Now(), sleeps(tid)
	busy(func() bool { return sleeps(tid)-first >= enough || time.Since(began) > limit })
	took := time.Since(began)
	if took > limit {
		return 0, fmt.Errorf("the monitor has been woken %d times in %v", sleeps(tid)-first, took)
	}
	if err := Monitor(); err != nil {
		return 0, err
	}
	began, first = time.Now(), sleeps(tid)
	busy(func() bool { return time.Since(began) > took })
	return sleeps(tid) - first, nil
}

// enough wakes are some that chance does not halve.
const enough = 100

func sleeps(tid int) int {
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", tid))
	_, after, _ := strings.Cut(string(status), "\nvoluntary_ctxt_switches:")
	line, _, _ := strings.Cut(after, "\n")
	n, _ := strconv.Atoi(strings.TrimSpace(line))
	return n
}

// skipWithoutRight skips where Monitor is refused, for which line is what it says.
func skipWithoutRight(t *testing.T, line string) {
	t.Helper()
	if strings.Contains(line, "CAP_SYS_NICE") {
		t.Skip(line)
	}
}

// TestMonitorFindsOneThread holds that one thread may be late, and that the others, which timers of the program depend on, may not.
func TestMonitorFindsOneThread(t *testing.T) {
	lines := play(t, "monitor")
	skipWithoutRight(t, lines[0])
	if lines[0] != "false <nil>" {
		t.Fatal(lines[0])
	}
	want := strconv.FormatInt(lateness.Nanoseconds(), 10)
	for i, l := range lines[1:] {
		_, slack, _ := strings.Cut(l, " ")
		if late := i == 1; late != (slack == want) {
			t.Errorf("thread %d of %d has a slack of %s ns", i, len(lines)-1, slack)
		}
	}
	if len(lines) < 4 {
		t.Errorf("%d threads: nothing to tell the monitor from", len(lines)-1)
	}
}

// TestMonitorIsWokenLess holds that the thread is the one that looks around all the time.
func TestMonitorIsWokenLess(t *testing.T) {
	line := play(t, "compare")[0]
	skipWithoutRight(t, line)
	var after int
	if _, err := fmt.Sscanf(line, "%d <nil>", &after); err != nil {
		t.Fatalf("%q: %v", line, err)
	}
	if after > enough/2 {
		t.Errorf("the monitor is woken %d times while it was %d times before: want half of that at most", after, enough)
	}
}

func TestProcessors(t *testing.T) {
	t.Setenv("GOMAXPROCS", "")
	many := runtime.GOMAXPROCS(3)
	defer runtime.GOMAXPROCS(many)
	now := func() int { return runtime.GOMAXPROCS(0) }
	p := NewProcessors()
	for i, tt := range []struct {
		parallel bool
		want     int
	}{{false, 1}, {true, 3}, {true, 3}, {false, 1}} {
		p.SetParallel(tt.parallel)
		if got := now(); got != tt.want {
			t.Errorf("step %d: %d processors, want %d", i, got, tt.want)
		}
	}
	p.Close()
	if got := now(); got != 3 {
		t.Errorf("afterwards %d processors, want 3", got)
	}
}

func TestProcessorsOfTheOperator(t *testing.T) {
	t.Setenv("GOMAXPROCS", "2")
	before := runtime.GOMAXPROCS(0)
	p := NewProcessors()
	defer p.Close()
	p.SetParallel(false)
	if got := runtime.GOMAXPROCS(0); got != before {
		t.Errorf("%d processors, want %d as before", got, before)
	}
}

func TestNoProcessors(*testing.T) {
	var p *Processors
	p.SetParallel(true)
	p.Close()
}
