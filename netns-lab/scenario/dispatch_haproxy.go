// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// haproxyHead is common to both modes: both cores, no log, the kernel moves the bytes where it can. maxconn keeps within a limit of 20,000
// descriptors, which is what some virtual machines allow even root.
const haproxyHead = `global
	nbthread 2
	maxconn 7000
	tune.maxpollevents 200
defaults
	timeout connect 5s
	timeout client 1h
	timeout server 1h
	timeout http-request 1h
	timeout http-keep-alive 1h
	option splice-auto
	option dontlognull
	maxconn 7000
`

// haproxyHTTP is a reverse proxy for HTTP and passes TLS on by server name. Connections to servers are shared as {{.Reuse}} says.
const haproxyHTTP = `
frontend web
	mode http
	bind {{.V4}}:80 backlog 4096
	bind [{{.V6}}]:80 backlog 4096
	use_backend linked if { path_beg {{.LinkedPath}} }
	use_backend %[req.hdr(host),lower,map({{.Map}})] if { req.hdr(host),lower,map({{.Map}}) -m found }
	default_backend files
frontend clear
	mode http
	bind {{.V4}}:8080 proto h2
	bind [{{.V6}}]:8080 proto h2
	default_backend clear
backend files
	mode http
	http-reuse {{.Reuse}}
	server nginx {{.Nginx}}:80 pool-max-conn 1000
backend linked
	mode http
	http-reuse {{.Reuse}}
	server demo {{.Linked}}:80 pool-max-conn 1000
backend clear
	mode http
	server nginx {{.Nginx}}:8080 proto h2
`

// haproxyTCP looks at the first bytes and then passes all on.
const haproxyTCP = `
frontend web
	mode tcp
	bind {{.V4}}:80 backlog 4096
	bind [{{.V6}}]:80 backlog 4096
	tcp-request inspect-delay 1h
	tcp-request content accept if { req.payload(0,12) -m found }
	use_backend linked if { req.payload(0,12) -m beg "GET {{.LinkedPath}}" "PUT {{.LinkedPath}}" }
	default_backend files
frontend clear
	mode tcp
	bind {{.V4}}:8080
	bind [{{.V6}}]:8080
	default_backend clear
backend files
	mode tcp
	server nginx {{.Nginx}}:80
backend linked
	mode tcp
	server demo {{.Linked}}:80
backend clear
	mode tcp
	server nginx {{.Nginx}}:8080
`

// haproxyRest is what no mode changes.
const haproxyRest = `
frontend tls
	mode tcp
	bind {{.V4}}:443 backlog 4096
	bind [{{.V6}}]:443 backlog 4096
	tcp-request inspect-delay 1h
	tcp-request content accept if { req.ssl_hello_type 1 }
	use_backend vault if { req.ssl_sni -i {{.VaultName}} }
	default_backend shop
frontend store
	mode tcp
	bind {{.V4}}:6379
	bind [{{.V6}}]:6379
	default_backend store
backend shop
	mode tcp
	server nginx {{.Nginx}}:443
backend vault
	mode tcp
	server nginx {{.Mixed}}:443
backend store
	mode tcp
	server redis {{.Mixed}}:6379
`

// HAProxyHTTP is HAProxy as a reverse proxy: it reads every request and every answer. TLS and redis it passes on as TCP. A new client's first
// request gets a new connection to the server, which is HAProxy's default ("safe"): one that was kept may be closed at that moment, and
// the request would fail.
func HAProxyHTTP() FrontReloader { return newHAProxyHTTP("haproxy-http", "safe") }

// HAProxyReuse is HAProxyHTTP with http-reuse always: first requests use kept connections, too, which is faster, and not quite safe.
func HAProxyReuse() FrontReloader { return newHAProxyHTTP("haproxy-reuse", "always") }

func newHAProxyHTTP(name, reuse string) FrontReloader {
	p := newHAProxy(name, strings.ReplaceAll(haproxyHTTP, "{{.Reuse}}", reuse))
	p.reload = func(pid int) error { return unix.Kill(pid, unix.SIGUSR2) }
	return p
}

// HAProxyTCP is HAProxy as a forwarder of TCP, with splice: it looks at the first bytes only.
func HAProxyTCP() FrontDaemon { return noReload{newHAProxy("haproxy-tcp", haproxyTCP)} }

// noReload hides a proxy's Reload.
type noReload struct{ FrontDaemon }

func newHAProxy(name, mode string) *proxy {
	return &proxy{
		name: name, program: "haproxy", serves: services(),
		// -W: a master that starts a new worker on SIGUSR2; -db: in the foreground.
		command: func(f *Farm) []string { return []string{"haproxy", "-W", "-db", "-f", f.path(FrontHost, name+".cfg")} },
		write: func(f *Farm, routes []Route) error {
			v := frontFiles(f, name)
			var list strings.Builder
			for _, r := range routes {
				fmt.Fprintf(&list, "%s %s\n", r.Host, r.Service)
			}
			if err := os.WriteFile(v.Map, []byte(list.String()), 0o644); err != nil {
				return err
			}
			return writeTemplate(f.path(FrontHost, name+".cfg"), haproxyHead+mode+haproxyRest, v)
		},
	}
}

// frontValues fills in the templates of the fronts.
type frontValues struct {
	Dir, Map, V4, V6, Nginx, Linked, Mixed, LinkedPath, VaultName string
	Routes                                                        []Route
}

func frontFiles(f *Farm, name string) frontValues {
	topo := f.Lab.Topology()
	return frontValues{
		Dir: f.path(FrontHost, "."), Map: f.path(FrontHost, name+".map"),
		V4: topo.VIP4().String(), V6: topo.VIP6().String(),
		Nginx: f.host(NginxHost).Addr4().String(), Linked: f.host(LinkedHost).Addr4().String(), Mixed: f.host(MixedHost).Addr4().String(),
		LinkedPath: LinkedPath, VaultName: VaultName,
	}
}
