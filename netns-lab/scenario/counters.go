// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// retransmitted returns how many TCP segments all hosts together have sent again since they exist (RetransSegs, RFC 4022).
func (c *Cluster) retransmitted() (int, error) {
	total := 0
	for _, h := range c.Lab.Hosts() {
		var text []byte
		err := h.Do(func() (err error) {
			text, err = os.ReadFile("/proc/thread-self/net/snmp")
			return err
		})
		if err != nil {
			return 0, fmt.Errorf("%s: %w", h.Name(), err)
		}
		n, err := snmpCounter(string(text), "Tcp", "RetransSegs")
		if err != nil {
			return 0, fmt.Errorf("%s: %w", h.Name(), err)
		}
		total += n
	}
	return total, nil
}

// snmpCounter finds a counter in the text of /proc/net/snmp: a line of names and one of values for each protocol.
func snmpCounter(text, protocol, name string) (int, error) {
	var names []string
	for _, line := range strings.Split(text, "\n") {
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0] != protocol+":" {
			continue
		}
		if names == nil {
			names = fields
			continue
		}
		for i, n := range names {
			if n == name && i < len(fields) {
				return strconv.Atoi(fields[i])
			}
		}
	}
	return 0, errors.New("no counter " + protocol + " " + name)
}
