// SPDX-License-Identifier: Apache-2.0

package scenario_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/rehome-net/rehome/netns-lab/scenario"
)

// stepsEvery is how many of the trials one run of the tests leaves out: all of them take some minutes. REHOME_STEPS=all runs all.
const stepsEvery = 15

// TestSteps kills real processes at named steps of a move, and loses, doubles and delays frames between them.
func TestSteps(t *testing.T) {
	binary(t) // for the skip
	dir := t.TempDir()
	command := filepath.Join(dir, "rehome")
	if out, err := exec.Command("go", "build", "-tags", "faults", "-o", command, "github.com/rehome-net/rehome/cmd/rehome").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v: %s", err, out)
	}
	t.Setenv(scenario.FaultVariable, filepath.Join(dir, "fault"))
	trials := scenario.StepTrials()
	if os.Getenv("REHOME_STEPS") != "all" {
		var some []scenario.StepTrial
		for i := 0; i < len(trials); i += stepsEvery {
			some = append(some, trials[i])
		}
		trials = some
	}
	lab := labName("steps")
	outcomes, problems, err := scenario.Steps(testContext(t, 20*time.Minute), scenario.StepsConfig{
		Command: []string{command}, Lab: lab, Trials: trials, Report: log{t},
	})
	if err != nil {
		t.Fatal(err)
	}
	checkGone(t, lab)
	for _, p := range problems {
		t.Error(p)
	}
	counts := make(map[string]int)
	for _, what := range outcomes {
		counts[what]++
	}
	t.Logf("%d trials: %v", len(outcomes), counts)
}
