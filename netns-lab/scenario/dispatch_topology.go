// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"net/netip"
	"slices"

	netnslab "github.com/rehome-net/rehome/netns-lab"
)

// The hosts of a Farm.
const (
	ClientHost = "client"
	// FrontHost answers for the virtual addresses; a Front runs on it.
	FrontHost = "front"
	// LinkedHost runs the demo server, which is linked with package handoff.
	LinkedHost = "b1"
	// NginxHost and MixedHost run programs that nobody changed: nginx; and nginx with another certificate, and redis. In a farm
	// with agents MixedHost has the demo server, too.
	NginxHost = "b2"
	MixedHost = "b3"
)

// DispatchTopology returns the lab of a Farm: Standard with other names, so that addresses are the same (the client .1,
// the front .2, b1 to b3 .11 to .13).
func DispatchTopology(name string) netnslab.Topology {
	t := netnslab.Standard(3)
	t.Name = name
	for i, host := range []string{ClientHost, FrontHost, LinkedHost, NginxHost, MixedHost} {
		t.Hosts[i].Name = host
	}
	return t
}

// Service is something that a Farm serves.
type Service string

// The services of a Farm.
const (
	// Files is HTTP of unmodified nginx on NginxHost; Linked is HTTP of the demo server on LinkedHost. Behind a front both
	// are at the same address and port, and requests for paths below LinkedPath, or for a host name that is so routed, are
	// Linked's.
	Files  Service = "files"
	Linked Service = "linked"
	// Shop and Vault are HTTPS on NginxHost and on MixedHost, each with a certificate of its own; behind a front both are at
	// the same address and port, told apart by server name.
	Shop  Service = "shop"
	Vault Service = "vault"
	// Clear is HTTP/2 without TLS, with prior knowledge, on NginxHost.
	Clear Service = "clear"
	// Store is redis on MixedHost.
	Store Service = "store"
)

// LinkedPath is where the requests begin that a front gives to Linked.
const LinkedPath = "/linked/"

// The server names in the certificates of Shop and Vault.
const (
	ShopName  = "shop.example"
	VaultName = "vault.example"
)

// services lists all services.
func services() []Service { return []Service{Files, Linked, Shop, Vault, Clear, Store} }

// Host returns the host that serves s.
func (s Service) Host() string {
	switch s {
	case Linked:
		return LinkedHost
	case Vault, Store:
		return MixedHost
	}
	return NginxHost
}

// Port returns the port of s, the same at a server's own address and at the virtual ones.
func (s Service) Port() uint16 {
	switch s {
	case Shop, Vault:
		return 443
	case Clear:
		return 8080
	case Store:
		return 6379
	}
	return FilesPort
}

// family picks an address.
func family(addrs []netip.Addr, v6 bool) netip.Addr {
	i := slices.IndexFunc(addrs, func(a netip.Addr) bool { return a.Is6() == v6 })
	if i < 0 {
		return netip.Addr{}
	}
	return addrs[i]
}
