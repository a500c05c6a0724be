// SPDX-License-Identifier: Apache-2.0

package synproxy

import (
	"testing"
	"time"

	"github.com/rehome-net/rehome/handoff/cookie"
)

func TestConfig(t *testing.T) {
	good := Config{
		Interface: "eth0", Parameters: cookie.Parameters{Secret: cookie.Secret{1}}, Table: &lateTable{}, Decide: func(Request) Decision { return Decision{} },
	}
	if err := good.validate(); err != nil {
		t.Error(err)
	}
	for name, spoil := range map[string]func(*Config){
		"interface": func(c *Config) { c.Interface = "" },
		"table":     func(c *Config) { c.Table = nil },
		"decide":    func(c *Config) { c.Decide = nil },
		"patience":  func(c *Config) { c.Patience = -time.Second },
		"window":    func(c *Config) { c.Window = 100 },
	} {
		c := good
		spoil(&c)
		if err := c.validate(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	for mtu, want := range map[int][2]uint16{1500: {1460, 1440}, 9000: {8960, 8940}, 1280: {1240, 1220}, 65536: {65495, 65475}} {
		if c := good.withDefaults(mtu); c.MSS4 != want[0] || c.MSS6 != want[1] {
			t.Errorf("MTU %d: MSS %d and %d", mtu, c.MSS4, c.MSS6)
		}
	}
}
