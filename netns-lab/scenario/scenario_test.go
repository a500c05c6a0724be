// SPDX-License-Identifier: Apache-2.0

package scenario_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	netnslab "github.com/rehome-net/rehome/netns-lab"
	"github.com/rehome-net/rehome/netns-lab/scenario"
)

// binary returns the program under test: $REHOME, or one that is built for this run.
func binary(tb testing.TB) []string {
	tb.Helper()
	if os.Geteuid() != 0 {
		tb.Skip("needs root: network namespaces, TCP_REPAIR and BPF")
	}
	if path := os.Getenv("REHOME"); path != "" {
		return []string{path}
	}
	path, err := buildOnce()
	if err != nil {
		tb.Fatal(err)
	}
	return []string{path}
}

var buildOnce = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "rh-bin-")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "rehome")
	out, err := exec.Command("go", "build", "-o", path, "github.com/rehome-net/rehome/cmd/rehome").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("go build: %w: %s", err, out)
	}
	return path, nil
})

func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == refuseBPF {
		fmt.Fprintln(os.Stderr, execWithoutBPF(os.Args[2:]))
		os.Exit(1)
	}
	code := m.Run()
	if os.Getenv("REHOME") == "" && os.Geteuid() == 0 {
		if path, err := buildOnce(); err == nil {
			_ = os.RemoveAll(filepath.Dir(path))
		}
	}
	os.Exit(code)
}

// Scenes that only ask what happens, not how soon, stand beside one another (t.Parallel): most of their time is waiting. They begin when the others
// have ended, which measure, or load the machine.

// labName returns a name that no other test process uses. Scenes that stand at the same time are of different kinds.
func labName(kind string) string { return fmt.Sprintf("%s-%d", kind, os.Getpid()) }

// log passes a scene's report on to the test's log.
type log struct{ tb testing.TB }

func (l log) Write(b []byte) (int, error) {
	l.tb.Logf("%s", b)
	return len(b), nil
}

func testContext(tb testing.TB, limit time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	tb.Cleanup(cancel)
	return ctx
}

// checkGone fails the test if a lab has left anything behind.
func checkGone(tb testing.TB, lab string) {
	tb.Helper()
	if _, err := os.Stat(scenario.ClusterDir(lab)); !os.IsNotExist(err) {
		tb.Errorf("%s is left: %v", scenario.ClusterDir(lab), err)
	}
	left, err := filepath.Glob("/run/netns/rh-" + lab + "-*")
	if err != nil || len(left) > 0 {
		tb.Errorf("namespaces are left: %v %v", left, err)
	}
}

func TestLiveMigration(t *testing.T) {
	lab := labName("move")
	r, err := scenario.LiveMigration(testContext(t, 5*time.Minute), scenario.LiveMigrationConfig{
		Command: binary(t), Lab: lab, Migrations: 20, Size: 1 << 30, Report: log{t},
	})
	if err != nil {
		t.Fatal(err)
	}
	checkGone(t, lab)
	if !r.OK {
		t.Errorf("%v\n%+v", r.Problems, r)
	}
}

func TestChurn(t *testing.T) {
	lab := labName("churn")
	migrations := 10000
	if testing.Short() {
		migrations = 500
	}
	r, err := scenario.Churn(testContext(t, 15*time.Minute), scenario.ChurnConfig{
		Command: binary(t), Lab: lab, Migrations: migrations, Report: log{t},
	})
	if err != nil {
		t.Fatal(err)
	}
	checkGone(t, lab)
	if !r.OK || r.Migrations != migrations {
		t.Errorf("%d migrations: %v", r.Migrations, r.Problems)
	}
	t.Logf("freeze: %+v", r.FreezeMicros)
}

func TestFaults(t *testing.T) {
	t.Parallel()
	for i, v := range scenario.Victims() {
		t.Run(string(v), func(t *testing.T) {
			t.Parallel()
			lab := labName(fmt.Sprintf("faults%d", i))
			r, err := scenario.Faults(testContext(t, 10*time.Minute), scenario.FaultsConfig{
				Command: binary(t), Lab: lab, Victims: []scenario.Victim{v}, Trials: 10, Report: log{t}, LogLevel: "info",
			})
			if err != nil {
				t.Fatal(err)
			}
			checkGone(t, lab)
			for _, p := range r.Problems {
				t.Error(p)
			}
			t.Logf("%+v", r.Outcomes[v])
		})
	}
}

func TestDrain(t *testing.T) {
	lab := labName("drain")
	r, err := scenario.Drain(testContext(t, 5*time.Minute), scenario.DrainConfig{
		Command: binary(t), Lab: lab, Connections: 2000, Report: log{t},
	})
	if err != nil {
		t.Fatal(err)
	}
	checkGone(t, lab)
	if !r.OK {
		t.Errorf("%v\n%+v", r.Problems, r)
	}
}

func TestClusterFailsCleanly(t *testing.T) {
	t.Parallel()
	binary(t) // for the skip
	lab := labName("broken")
	topo := netnslab.Standard(2)
	topo.Name = lab
	c, err := scenario.StartCluster(testContext(t, time.Minute), scenario.ClusterConfig{
		Topology: topo, Command: []string{"/bin/false"}, Root: "/",
	})
	if err == nil {
		t.Error("a cluster of /bin/false stands", c.Close())
	}
	checkGone(t, lab)
}
