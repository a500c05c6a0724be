// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"errors"
	"fmt"
	"net"
	"os"
	"reflect"
	"time"

	"github.com/rehome-net/rehome/dispatcher/admission"
	"github.com/rehome-net/rehome/dispatcher/availability"
	"github.com/rehome-net/rehome/dispatcher/balance"
	"github.com/rehome-net/rehome/dispatcher/forecast"
	"github.com/rehome-net/rehome/dispatcher/load"
	"github.com/rehome-net/rehome/handoff/vitals"
)

// ReportsConfig says where backends' heartbeats and loads come (SARA 24-29). Without Keys none are listened for.
type ReportsConfig struct {
	// Listen is the UDP address, host:port (:7072).
	Listen string `yaml:"listen,omitempty"`
	// Keys is the file with the keys that backends sign with; see vitals.ReadKeys. Hosts' numbers are the peers' ids.
	Keys string `yaml:"keys,omitempty"`
	// Interval is the time between a backend's heartbeats, the paper's d (100 ms), and Misses for how many of them it may be silent, n (3).
	Interval time.Duration `yaml:"interval,omitempty"`
	Misses   int           `yaml:"misses,omitempty"`
	// LoadInterval is the time between its load vectors, delta (200 ms).
	LoadInterval time.Duration `yaml:"load_interval,omitempty"`
	// Weights say how much each part of a load vector counts, 0 to 1: cpu (0.8), memory, network, io, backlog, application (1). A busy processor
	// alone is no overload, so it does not reach the upper thresholds of admission by itself.
	Weights map[string]float64 `yaml:"weights,omitempty"`
}

func (c ReportsConfig) on() bool { return c.Keys != "" }

func (c ReportsConfig) availability() availability.Config {
	return availability.Config{Interval: c.Interval, Misses: c.Misses}
}

// cpuWeight is what a processor that is busy all the time counts.
const cpuWeight = 0.8

func (c ReportsConfig) load() load.Config {
	w := vitals.EvenWeights()
	w[vitals.CPU] = cpuWeight
	for p := range vitals.Parts {
		if v, ok := c.Weights[p.String()]; ok {
			w[p] = v
		}
	}
	return load.Config{Interval: c.LoadInterval, Weights: w}
}

// unknownWeight returns a name that is no part of a load vector, if there is one.
func (c ReportsConfig) unknownWeight() string {
	for name := range c.Weights {
		known := false
		for p := range vitals.Parts {
			known = known || p.String() == name
		}
		if !known {
			return name
		}
	}
	return ""
}

// keys reads the key file.
func (c ReportsConfig) keys() ([]vitals.Key, error) {
	f, err := os.Open(c.Keys)
	if err != nil {
		return nil, fmt.Errorf("reports.keys: %w", err)
	}
	defer f.Close() //nolint:errcheck // read only
	keys, err := vitals.ReadKeys(f)
	if err != nil {
		return nil, fmt.Errorf("reports.keys: %s: %w", c.Keys, err)
	}
	return keys, nil
}

// AdmissionConfig is admission.Config as the configuration file has it. Without Policy everything is taken.
type AdmissionConfig struct {
	Policy      admission.Kind    `yaml:"policy,omitempty"`
	Reading     admission.Reading `yaml:"reading,omitempty"`
	Alpha       float64           `yaml:"alpha,omitempty"`
	T1          float64           `yaml:"t1,omitempty"`
	T2          float64           `yaml:"t2,omitempty"`
	T3          float64           `yaml:"t3,omitempty"`
	C           float64           `yaml:"c,omitempty"`
	Gap         float64           `yaml:"gap,omitempty"`
	Fixed       bool              `yaml:"fixed_thresholds,omitempty"`
	Interval    time.Duration     `yaml:"interval,omitempty"`
	Floor       time.Duration     `yaml:"floor,omitempty"`
	Connections int               `yaml:"connections,omitempty"`
	// RetryAfter has clients of HTTP told 503, and to come back after that time. Without it their SYN is dropped, as others'
	// first packets are.
	RetryAfter time.Duration `yaml:"retry_after,omitempty"`
}

func (c AdmissionConfig) policy() admission.Config {
	return admission.Config{
		Kind: c.Policy, Reading: c.Reading, Alpha: c.Alpha, T1: c.T1, T2: c.T2, T3: c.T3, C: c.C, Gap: c.Gap, FixedThresholds: c.Fixed,
		Interval: c.Interval, Floor: c.Floor, Connections: c.Connections,
	}
}

// ForecastConfig is forecast.Config as the configuration file has it.
type ForecastConfig struct {
	Window int `yaml:"window,omitempty"`
	Ahead  int `yaml:"ahead,omitempty"`
}

func (c ForecastConfig) series() forecast.Config {
	return forecast.Config{Window: c.Window, Ahead: c.Ahead, Ceiling: 1}
}

// SheddingConfig says when live connections leave a server that is too hot (M-TCP 8); see load.ShedConfig.
type SheddingConfig struct {
	Enabled bool `yaml:"enabled,omitempty"`
	// Above and Below are the loads at which it begins, and ends (0.85, 0.65).
	Above float64 `yaml:"above,omitempty"`
	Below float64 `yaml:"below,omitempty"`
	// PerSecond is how many connections move in a second at most (200), also those that leave a server which has announced its failure, with or
	// without Enabled. Stay is how long each stays where it has come to (30 s).
	PerSecond int           `yaml:"per_second,omitempty"`
	Stay      time.Duration `yaml:"stay,omitempty"`
}

// shedder is the configuration of package load. Without Enabled no server is hot: no load exceeds 1.
func (c SheddingConfig) shedder() load.ShedConfig {
	if !c.Enabled {
		return load.ShedConfig{High: 1, Rate: c.PerSecond}
	}
	return load.ShedConfig{High: c.Above, Low: c.Below, Rate: c.PerSecond, Stay: c.Stay}
}

// validate says what is wrong, in the words of the configuration file.
func (c SheddingConfig) validate() error {
	_, err := load.NewShedder(c.shedder())
	if err == nil {
		return nil
	}
	above, below := c.Above, c.Below
	if above == 0 {
		above = load.DefaultHigh
	}
	if below == 0 {
		below = load.DefaultLow
	}
	switch {
	case !(above > 0 && above <= 1):
		return fmt.Errorf("above: %v: want more than 0, at most 1", above)
	case !(below > 0 && below < above):
		return fmt.Errorf("below: %v: want more than 0, and less than above, %v", below, above)
	case c.PerSecond < 0:
		return fmt.Errorf("per_second: %d: want more than 0", c.PerSecond)
	}
	return err
}

// validateManagement looks at everything that the engines of SARA are told.
func (c *Config) validateManagement() error {
	var errs []error
	bad := func(where string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", where, err))
		}
	}
	if c.Reports.on() {
		if c.Reports.Listen != "" {
			_, _, err := net.SplitHostPort(c.Reports.Listen)
			bad("reports.listen", err)
		}
		_, err := availability.New(c.Reports.availability())
		bad("reports", err)
		_, err = load.NewManager(c.Reports.load())
		bad("reports", err)
		if name := c.Reports.unknownWeight(); name != "" {
			bad("reports.weights", fmt.Errorf("%q: want cpu, memory, network, io, backlog or application", name))
		}
	} else if !reflect.DeepEqual(c.Reports, ReportsConfig{}) {
		bad("reports.keys", errors.New("missing: reports are authenticated"))
	}
	_, err := forecast.New(c.Forecast.series())
	bad("forecast", err)
	if c.Admission.Policy != "" {
		_, err := admission.New(c.Admission.policy())
		bad("admission", err)
		if c.Admission.Policy != admission.None && !c.Reports.on() {
			bad("admission", errors.New("it goes by the backends' loads: give reports.keys"))
		}
	} else if c.Admission != (AdmissionConfig{}) {
		bad("admission.policy", fmt.Errorf("missing: want %s, %s, %s, %s or %s",
			admission.SA2C, admission.None, admission.Static, admission.Request, admission.LeastConnections503))
	}
	bad("shedding", c.Shedding.validate())
	if c.Shedding.Enabled && !c.Reports.on() {
		bad("shedding", errors.New("it goes by the backends' loads: give reports.keys"))
	}
	for _, p := range c.Pools {
		if p.Balance == balance.Shell && !c.Reports.on() {
			bad("pools "+p.Name, errors.New("balance: shell: it goes by the backends' loads: give reports.keys"))
		}
	}
	return errors.Join(errs...)
}
