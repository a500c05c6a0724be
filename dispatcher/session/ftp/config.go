// SPDX-License-Identifier: Apache-2.0

package ftp

import "fmt"

const (
	defaultLine = 512
	// leastPort is the first port that is nobody's well-known service (RFC 2577, 3).
	leastPort = 1024
)

// Config says how FTP of one service is inspected. The zero value works.
type Config struct {
	Limits Limits
}

// Limits bound what one connection can make the inspector keep. A zero field means the default.
type Limits struct {
	// Line of the control connection in bytes; a longer one is read past. 512.
	Line int
}

// validate fills defaults in.
func (c *Config) validate() error {
	if c.Limits.Line == 0 {
		c.Limits.Line = defaultLine
	}
	if c.Limits.Line < 128 || c.Limits.Line > 1<<16 {
		return fmt.Errorf("ftp: Limits.Line is %d; choose 128 to %d", c.Limits.Line, 1<<16)
	}
	return nil
}
