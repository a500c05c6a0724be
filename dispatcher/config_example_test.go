// SPDX-License-Identifier: Apache-2.0

package dispatcher_test

import (
	"fmt"
	"strings"

	"github.com/rehome-net/rehome/dispatcher"
)

func ExampleLoadConfig() {
	c, err := dispatcher.LoadConfig("testdata/config.yaml")
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, s := range c.Services {
		fmt.Println(s.Name, s.Mode, s.Addresses[0], "routes:", len(s.Routes))
	}
	// Output:
	// web http 198.51.100.1:80 routes: 3
	// secure tls 198.51.100.1:443 routes: 2
	// cache tcp 198.51.100.1:6379 routes: 0
	// video rtsp 198.51.100.1:554 routes: 0
	// voice sip 198.51.100.1:5060 routes: 0
	// archive ftp 198.51.100.1:21 routes: 0
	// names udp 198.51.100.1:53 routes: 0
}

// Everything that is wrong is said at once.
func ExampleReadConfig() {
	_, err := dispatcher.ReadConfig(strings.NewReader(`
host: front
interfaces: [eth0]
plaintext: true
peers: [{name: b1, address: 10.0.0.11}]
services:
  - {name: web, addresses: ["198.51.100.1:80"], mode: http, default: fils}
pools:
  - {name: files, delivery: unmodified, backends: [{host: b7}]}
`))
	fmt.Println(err)
	// Output:
	// pools[0] files: backends[0]: host: "b7" is not among the peers
	// services[0] web: default: "fils" is not among the pools
}
