// SPDX-License-Identifier: Apache-2.0

package gateway_test

import (
	"context"
	"fmt"
	"log"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"strings"

	"github.com/rehome-net/rehome/dispatcher/gateway"
	"github.com/rehome-net/rehome/handoff/peer"
)

// The gateway's process.
func ExampleOpen() {
	cfg, err := gateway.LoadConfig("/etc/rehome/gateway.yaml")
	if err != nil {
		log.Fatal(err)
	}
	g, err := gateway.Open(cfg, gateway.Signalling, slog.Default())
	if err != nil {
		log.Fatal(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	err = g.Run(ctx)
	if closing := g.Close(); err != nil || closing != nil {
		log.Print(err, closing)
	}
}

// The dispatcher's side.
func ExampleServer() {
	server, err := gateway.NewServer(gateway.ServerConfig{
		Gateways: []string{"gw-1"},
		Install: func(_ context.Context, said gateway.Said) error {
			for _, half := range said.Halves {
				fmt.Println(said.Gateway, half.Flow, half.Session)
			}
			return nil // what the halves announce is installed
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	identity, err := peer.LoadIdentity(peer.Files{Certificate: "front.pem", Key: "front.key", Authority: "authority.pem"})
	if err != nil {
		log.Fatal(err)
	}
	ln, err := net.Listen("tcp", ":7070")
	if err != nil {
		log.Fatal(err)
	}
	for {
		conn, err := ln.Accept()
		if err != nil {
			log.Fatal(err)
		}
		go func() {
			log.Print(server.Accept(context.Background(), peer.Self{Host: "front", Identity: identity}, conn))
		}()
	}
}

func ExampleReadConfig() {
	_, err := gateway.ReadConfig(strings.NewReader(`
host: gw-1
interfaces: [eth1]
dispatcher: {name: front, address: 10.77.0.2}
plaintext: true
servers: [{name: b1, address: 10.77.0.11}]
services: [{name: web, mode: http, addresses: ["198.51.100.1:80"]}]
`))
	fmt.Println(err)
	// Output: services[0] web: mode: "http": want rtsp, sip or ftp; other services need no gateway
}
