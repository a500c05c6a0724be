// SPDX-License-Identifier: Apache-2.0

package sip

import (
	"fmt"

	"github.com/rehome-net/rehome/dispatcher/session/inspect"
)

const (
	defaultLine      = 4096
	defaultFields    = 128
	defaultBody      = 16 << 10
	defaultDialogs   = 64
	defaultExchanges = 8
	defaultStreams   = 256
	defaultFlows     = 256
)

// Config says how SIP of one service is inspected. The zero value works.
type Config struct {
	Limits Limits
}

// Limits bound what one flow can make the inspector keep. A zero field means the default.
type Limits struct {
	// Line of a message's head in bytes; a longer one is read past, and its field is not known. 4096.
	Line int
	// Fields of a message's head. 128.
	Fields int
	// Body in bytes. A larger one is read past on TCP, up to 1 MiB. 16 KiB.
	Body int
	// Dialogs of one session that are known at a time: calls of a trunk. 64.
	Dialogs int
	// Exchanges of offer and answer of one dialog that are remembered. 8.
	Exchanges int
	// Streams of all the descriptions that are remembered; the oldest exchanges are forgotten. 256, some 35 KiB.
	Streams int
	// Flows that a session has announced. 256.
	Flows int
}

// validate fills defaults in.
func (c *Config) validate() error {
	for _, l := range []struct {
		name                string
		value               *int
		normal, least, most int
	}{
		{"Line", &c.Limits.Line, defaultLine, 256, 1 << 16},
		{"Fields", &c.Limits.Fields, defaultFields, 8, 1 << 10},
		{"Body", &c.Limits.Body, defaultBody, 256, 1 << 16},
		{"Dialogs", &c.Limits.Dialogs, defaultDialogs, 1, 1 << 12},
		{"Exchanges", &c.Limits.Exchanges, defaultExchanges, 2, 1 << 8},
		{"Streams", &c.Limits.Streams, defaultStreams, 2 * inspect.MaxStreams, 1 << 14},
		{"Flows", &c.Limits.Flows, defaultFlows, 2, 1 << 14},
	} {
		if *l.value == 0 {
			*l.value = l.normal
		}
		if *l.value < l.least || *l.value > l.most {
			return fmt.Errorf("sip: Limits.%s is %d; choose %d to %d", l.name, *l.value, l.least, l.most)
		}
	}
	return nil
}
