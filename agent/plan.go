// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"slices"
	"strings"
)

// RestartError means that a new configuration differs in what cannot be changed while the agent runs.
type RestartError struct {
	// Keys are the configuration's.
	Keys []string
}

// Error implements error.
func (e *RestartError) Error() string {
	return fmt.Sprintf("%s: cannot be changed by a reload: restart the agent, or put it back", strings.Join(e.Keys, ", "))
}

// needRestart says what of the difference between two configurations needs a restart.
func needRestart(old, cfg *Config) error {
	var keys []string
	for _, c := range []struct {
		key  string
		same bool
	}{
		{"host", old.Host == cfg.Host},
		{"interfaces", slices.Equal(old.Interfaces, cfg.Interfaces)},
		{"listen", old.Listen == cfg.Listen},
		{"control", old.Control == cfg.Control},
		{"applications", old.Applications == cfg.Applications},
		{"metrics", old.Metrics == cfg.Metrics},
		{"tls", old.TLS == cfg.TLS},
		{"plaintext", old.Plaintext == cfg.Plaintext},
		{"gate.mode", old.Gate.Mode == cfg.Gate.Mode},
		{"gate.pin", old.Gate.Pin == cfg.Gate.Pin},
		{"gate.max_flows", old.Gate.MaxFlows == cfg.Gate.MaxFlows},
		{"gate.hold_packets", old.Gate.HoldPackets == cfg.Gate.HoldPackets},
		{"gate.hold_bytes", old.Gate.HoldBytes == cfg.Gate.HoldBytes},
		{"gate.hold_total", old.Gate.HoldTotal == cfg.Gate.HoldTotal},
		{"gate.idle_timeout", old.Gate.IdleTimeout == cfg.Gate.IdleTimeout},
		{"gate.report_ends", isOn(old.Gate.ReportEnds) == isOn(cfg.Gate.ReportEnds)},
		{"report", old.Report.equal(&cfg.Report)},
		{"migration.seed_window", isOn(old.Migration.SeedWindow) == isOn(cfg.Migration.SeedWindow)},
	} {
		if !c.same {
			keys = append(keys, c.key)
		}
	}
	if len(keys) > 0 {
		return &RestartError{Keys: keys}
	}
	return nil
}

// isOn reads a switch that is on unless the configuration says otherwise.
func isOn(b *bool) bool { return b == nil || *b }
