// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/rehome-net/rehome/dispatcher/load"
	"github.com/rehome-net/rehome/handoff/vitals"
)

// TestWeights: what stands in the file comes to package load, part for part, and what does not has its default.
func TestWeights(t *testing.T) {
	c, err := ReadConfig(strings.NewReader(goodConfig + `
reports: {keys: /etc/rehome/keys, weights: {cpu: 0.1, memory: 0.2, network: 0.3, io: 0.4, backlog: 0.5, application: 0.6}}
`))
	if err != nil {
		t.Fatal(err)
	}
	want := load.Config{Weights: vitals.Weights{
		vitals.CPU: 0.1, vitals.Memory: 0.2, vitals.Network: 0.3, vitals.IO: 0.4, vitals.Backlog: 0.5, vitals.Application: 0.6,
	}}
	if d := cmp.Diff(want, c.Reports.load()); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	want.Weights = vitals.EvenWeights()
	want.Weights[vitals.CPU] = 0.8
	if d := cmp.Diff(want, ReportsConfig{}.load()); d != "" {
		t.Errorf("without any (-want +got):\n%s", d)
	}
	for text, want := range map[string]string{"{cpu: 2}": "weight of cpu", "{gpu: 1}": "gpu"} {
		_, err = ReadConfig(strings.NewReader(goodConfig + "\nreports: {keys: /etc/rehome/keys, weights: " + text + "}\n"))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}
