// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"net/netip"
	"sync"

	"github.com/rehome-net/rehome/tcprepair"
)

// outlines remembers the socket options of accepted connections. A connection has its listener's, and nobody sets others before it is
// handed off; so they are read once for each address, and not within every freeze.
type outlines struct {
	known sync.Map // netip.AddrPort to *tcprepair.Outline
}

// of returns the outline of an accepted connection.
func (o *outlines) of(fd int, f tcprepair.Flow) (*tcprepair.Outline, error) {
	if v, ok := o.known.Load(f.Local); ok {
		if template, ok := v.(*tcprepair.Outline); ok {
			outline := *template
			outline.Flow = f
			return &outline, nil
		}
	}
	outline, err := tcprepair.ReadOutline(fd)
	if err != nil {
		return nil, err
	}
	o.known.Store(f.Local, outline)
	return outline, nil
}

// forget drops what is known of an address whose listeners have changed.
func (o *outlines) forget(a netip.AddrPort) { o.known.Delete(a) }
