// SPDX-License-Identifier: Apache-2.0

package session

import "strings"

const (
	maxMedia    = 256 // different names
	maxMediaLen = 32  // bytes of a name
)

// mediaNames gives the names of media numbers of one byte. Names are few; a name that comes when there is no number left is lost,
// which only operators would notice.
type mediaNames struct {
	names   []string
	numbers map[string]uint8
}

// number returns 0 for the empty name, and for one without room.
func (m *mediaNames) number(text string) uint8 {
	if n, ok := m.numbers[text]; ok || text == "" {
		return n
	}
	if m.numbers == nil {
		m.names, m.numbers = []string{""}, make(map[string]uint8)
	}
	if len(m.names) == maxMedia || len(text) > maxMediaLen {
		return 0
	}
	n := uint8(len(m.names))
	text = strings.Clone(text)
	m.names, m.numbers[text] = append(m.names, text), n
	return n
}

func (m *mediaNames) text(n uint8) string {
	if n == 0 {
		return ""
	}
	return m.names[n]
}
