// SPDX-License-Identifier: Apache-2.0

package rtsp

import "fmt"

const (
	defaultLine    = 4096
	defaultFields  = 64
	defaultBody    = 1 << 20
	defaultPending = 16
	defaultFlows   = 64
)

// Config says how RTSP of one service is inspected. The zero value works.
type Config struct {
	// OpenClientPorts leaves the client's port of every announcement open. Without it a flow comes from the port where the
	// client said that it receives, which a client behind NAT does not keep; RTSP shows no sign of NAT. With it, two
	// sessions of one client address whose servers choose the same port contradict each other.
	OpenClientPorts bool
	Limits          Limits
}

// Limits bound what one connection can make the inspector keep. A zero field means the default.
type Limits struct {
	// Line of a message's head in bytes; a longer one is read past, and its field is not known. 4096.
	Line int
	// Fields of a message's head. 64.
	Fields int
	// Body in bytes that is read past. A larger one is not believed, and the next message is searched for. 1 MiB.
	Body int
	// Pending messages of each side that wait for the other side's. 16.
	Pending int
	// Flows that a session has announced, and streams that it has set up. 64.
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
		{"Body", &c.Limits.Body, defaultBody, 1, 1 << 24},
		{"Pending", &c.Limits.Pending, defaultPending, 1, 1 << 10},
		{"Flows", &c.Limits.Flows, defaultFlows, 2, 1 << 10},
	} {
		if *l.value == 0 {
			*l.value = l.normal
		}
		if *l.value < l.least || *l.value > l.most {
			return fmt.Errorf("rtsp: Limits.%s is %d; choose %d to %d", l.name, *l.value, l.least, l.most)
		}
	}
	return nil
}
