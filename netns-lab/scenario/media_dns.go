// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"context"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// DNSPort is where Media's servers of names are, over UDP.
const DNSPort = 53

const (
	// firstQuery is the client's port of the first session with servers of names; each has one.
	firstQuery = 20000
	// queriesEach is how many questions a session asks, one after the other from its one port.
	queriesEach = 4
	// whereName is what every server knows its own number as.
	whereName = "where.example"
	// answerTime is how long dig waits for an answer. It does not ask again: what is lost shall be seen.
	answerTime = 5 * time.Second
)

// whereAddress is what the server with a number, from 0, answers.
func whereAddress(number int) netip.Addr {
	return netip.AddrFrom4([4]byte{192, 0, 2, byte(number + 1)})
}

// ServeDNS starts dnsmasq on a server. It is bound to the virtual address, which its answers come from, and knows one name.
func (m *Media) ServeDNS(ctx context.Context, server string) error {
	p, err := m.launch(ctx, server, "dnsmasq", "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--user=root", "--group=root", "--pid-file=",
		"--no-resolv", "--no-hosts", "--cache-size=0", "--port="+strconv.Itoa(DNSPort), "--bind-interfaces", "--listen-address="+m.VIP().String(),
		"--address=/"+whereName+"/"+whereAddress(m.number(server)).String())
	if err != nil {
		return err
	}
	return m.listening(ctx, p, server, "udp", netip.AddrPortFrom(m.VIP(), DNSPort))
}

// QueryDNS has dig ask some questions from one port, which number chooses: they are one session, and one server must answer all of them.
func (m *Media) QueryDNS(ctx context.Context, number int) error {
	from := fmt.Sprintf("%v#%d", m.host(ClientHost).Addr4(), firstQuery+number)
	first := ""
	for i := range queriesEach {
		out, err := m.run(ctx, startTimeout, m.path(ClientHost, "."), "dig", "@"+m.VIP().String(), "-b", from, "-p", strconv.Itoa(DNSPort),
			whereName, "A", "+short", "+tries=1", fmt.Sprintf("+time=%d", int(answerTime/time.Second)))
		if err != nil {
			return fmt.Errorf("DNS, session %d, question %d: %w", number, i, err)
		}
		answer := strings.TrimSpace(out)
		if _, err := netip.ParseAddr(answer); err != nil {
			return fmt.Errorf("DNS, session %d, question %d: %q", number, i, answer)
		}
		if first == "" {
			first = answer
		}
		if answer != first {
			return fmt.Errorf("DNS, session %d: %s answers question %d, and %s answered the first", number, answer, i, first)
		}
	}
	return nil
}
