// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

// TestMetricsAreDocumented looks for every metric of an agent in the operators' guide.
func TestMetricsAreDocumented(t *testing.T) {
	guide, err := os.ReadFile("../docs/operators.md")
	if err != nil {
		t.Fatal(err)
	}
	m := newMetrics()
	m.watchReporter(struct{ reporter }{})
	descs := make(chan *prometheus.Desc, 1000)
	m.registry.Describe(descs)
	close(descs)
	name := regexp.MustCompile(`fqName: "([^"]+)"`)
	n := 0
	for d := range descs {
		found := name.FindStringSubmatch(d.String())
		if found == nil {
			t.Fatalf("no name in %v", d)
		}
		n++
		if !strings.Contains(string(guide), "`"+found[1]) {
			t.Errorf("%s is not in docs/operators.md", found[1])
		}
	}
	if n < 10 {
		t.Errorf("only %d metrics", n)
	}
}
