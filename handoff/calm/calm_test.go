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

	"golang.org/x/sys/unix"
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
	case "watch":
		fmt.Println(watch())
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

// watch returns how often the thread that Monitor sets was seen in nanosleep(2) within some time, while the process is not at rest.
func watch() (int, error) {
	const enough, limit = 20, 10 * time.Second
	tid, err := monitor()
	if err != nil {
		return 0, err
	}
	seen := 0
	for began := time.Now(); seen < enough && time.Since(began) < limit; {
		_, _ = os.Stat("/")
		call, err := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/syscall", tid))
		if err != nil {
			return 0, err
		}
		if number, _, _ := strings.Cut(string(call), " "); number == strconv.Itoa(unix.SYS_NANOSLEEP) {
			seen++
		}
		time.Sleep(100 * time.Microsecond)
	}
	return seen, nil
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

// TestMonitorLooksAround holds that the thread is the one that looks around all the time: Go's runtime sleeps by nanosleep(2) in its
// monitor; goroutines that sleep, and threads without work, wait in other ways.
func TestMonitorLooksAround(t *testing.T) {
	if _, err := os.Stat("/proc/self/syscall"); err != nil {
		t.Skip("the kernel does not say what a thread waits in: ", err)
	}
	if line := play(t, "watch")[0]; line == "0 <nil>" || !strings.HasSuffix(line, " <nil>") {
		t.Errorf("times seen in nanosleep: %s", line)
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
