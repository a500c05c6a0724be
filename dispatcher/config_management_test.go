// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"strings"
	"testing"
)

// TestReadConfigManagement holds that every mistake is named by its key.
func TestReadConfigManagement(t *testing.T) {
	const reports = "reports: {keys: /etc/rehome/reports.keys}\n"
	for _, tt := range []struct{ name, text, want string }{
		{"reports without keys", "reports: {interval: 10ms}", "reports.keys: missing"},
		{"address of reports", "reports: {keys: k, listen: nowhere}", "reports.listen: "},
		{"short interval", "reports: {keys: k, interval: 1us}", "reports: "},
		{"negative misses", "reports: {keys: k, misses: -1}", "reports: "},
		{"negative interval of loads", "reports: {keys: k, load_interval: -1s}", "reports: "},
		{"window of the forecast", "forecast: {window: -1}", "forecast: "},
		{"admission without policy", "admission: {t1: 0.5}", "admission.policy: missing"},
		{"unknown policy", reports + "admission: {policy: guess}", "admission: "},
		{"unknown reading", reports + "admission: {policy: sa2c, reading: loose}", "admission: "},
		{"thresholds in disorder", reports + "admission: {policy: sa2c, t1: 0.9, t2: 0.5}", "admission: "},
		{"admission without reports", "admission: {policy: sa2c}", "admission: it goes by the backends' loads: give reports.keys"},
		{"shedding without reports", "shedding: {enabled: true}", "shedding: it goes by the backends' loads: give reports.keys"},
		{"shedding from below", reports + "shedding: {enabled: true, above: 0.5, below: 0.6}", "shedding: below: 0.6"},
		{"shedding from beyond", reports + "shedding: {enabled: true, above: 1.5}", "shedding: above: 1.5"},
		{"shedding backwards", reports + "shedding: {enabled: true, per_second: -1}", "shedding: per_second: -1"},
		{"shell without reports", "balance: shell", "pools files: balance: shell: it goes by the backends' loads: give reports.keys"},
		{"many flows", "sessions: {max_flows: 100000000}", "sessions.max_flows: 100000000: want 1 to"},
		{"negative flows", "sessions: {per_client: -1}", "sessions.per_client: -1: want 1 to"},
		{"short session", "sessions: {signalling: 1s}", "sessions.signalling: 1s: want 10s to"},
		{"endless media", "sessions: {media: 48h}", "sessions.media: 48h0m0s: want 10s to"},
		{"gateway without name", "gateways: ['']", `gateways[0]: "": empty or named twice`},
		{"gateway twice", "gateways: [gw, gw]", `gateways[1]: "gw": empty or named twice`},
		{"gateway that is a backend", "gateways: [gw, b2]", "gateways[1]: b2 is a backend"},
		{"unknown key", reports + "admission: {policy: none, t4: 1}", "field t4 not found"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			text := goodConfig + tt.text + "\n"
			if tt.text == "balance: shell" {
				text = strings.Replace(goodConfig, "delivery: unmodified", "delivery: unmodified\n    balance: shell", 1)
			}
			_, err := ReadConfig(strings.NewReader(text))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one with %q", err, tt.want)
			}
		})
	}
}

// TestReadConfigManagementAccepts holds what may be left out.
func TestReadConfigManagementAccepts(t *testing.T) {
	for _, text := range []string{
		"", "reports: {keys: k}", "admission: {policy: none}", "shedding: {above: 0.9}",
		"reports: {keys: k, listen: ':7072', interval: 10ms, misses: 3, load_interval: 100ms}\nforecast: {window: 16, ahead: 2}\n" +
			"admission: {policy: sa2c, reading: literal, alpha: 0.8, t1: 0.5, t2: 0.6, t3: 0.7, c: 0.8, retry_after: 2s}\n" +
			"shedding: {enabled: true, above: 0.9, below: 0.7, per_second: 50, stay: 10s}\n" +
			"sessions: {max_flows: 1000, per_client: 10, signalling: 10s, media: 24h}\ngateways: [gw]",
	} {
		if _, err := ReadConfig(strings.NewReader(goodConfig + text + "\n")); err != nil {
			t.Errorf("%s: %v", text, err)
		}
	}
}
