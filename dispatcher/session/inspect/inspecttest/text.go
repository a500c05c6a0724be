// SPDX-License-Identifier: Apache-2.0

package inspecttest

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/rehome-net/rehome/dispatcher/session"
	"github.com/rehome-net/rehome/dispatcher/session/inspect"
)

func flowText(a session.Announcement) string {
	protocol := "udp"
	if a.Protocol == protoTCP {
		protocol = "tcp"
	}
	return fmt.Sprintf("%s %v -> %v %s", protocol, a.Client, a.Server, a.Media)
}

// Describe returns a half as a line of text, without its flow.
func Describe(h *inspect.Half) string {
	words := []string{h.Side.String(), h.Method.String()}
	add := func(key string, value any, is bool) {
		if is {
			words = append(words, fmt.Sprintf("%s=%v", key, value))
		}
	}
	add("status", h.Status, h.Status != 0)
	add("seq", h.Seq, h.Seq != 0)
	add("ack", h.Ack, h.Ack != 0)
	add("session", h.Session, h.Session != "")
	add("from", h.From, h.From != "")
	add("to", h.To, h.To != "")
	add("timeout", h.Timeout, h.Timeout != 0)
	for i := range h.Streams {
		words = append(words, streamText(&h.Streams[i]))
	}
	return strings.Join(words, " ")
}

func streamText(s *inspect.Stream) string {
	t := s.Transport.String()
	for _, end := range []struct {
		name string
		at   netip.AddrPort
	}{{"", s.RTP}, {"rtcp ", s.RTCP}, {"peer ", s.PeerRTP}, {"peer rtcp ", s.PeerRTCP}} {
		if end.at == (netip.AddrPort{}) {
			continue
		}
		host := ""
		if end.at.Addr().IsValid() {
			host = end.at.Addr().String()
		}
		t += fmt.Sprintf(" %s%s:%d", end.name, host, end.at.Port())
	}
	if s.Mux {
		t += " mux"
	}
	if s.Open {
		t += " open"
	}
	if s.Pairs > 1 {
		t += fmt.Sprintf(" pairs %d", s.Pairs)
	}
	return "{" + t + "}"
}
