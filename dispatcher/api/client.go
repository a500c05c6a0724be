// SPDX-License-Identifier: Apache-2.0

// Package api is what operators use of a dispatcher: the gRPC messages, made from dispatcher.proto, and a client.
package api

import (
	"crypto/tls"
	"fmt"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

//go:generate protoc --go_out=. --go_opt=paths=source_relative --go-grpc_out=. --go-grpc_opt=paths=source_relative dispatcher.proto

// Client is a connection to a dispatcher.
type Client struct {
	DispatcherClient
	conn *grpc.ClientConn
}

// Dial returns a client of the dispatcher at address: the path of its control socket, or host:port, which needs a TLS
// configuration with a certificate that the dispatcher trusts. The connection is opened by the first call.
func Dial(address string, config *tls.Config) (*Client, error) {
	target, creds := "unix:"+address, insecure.NewCredentials()
	if !strings.HasPrefix(address, "/") {
		if config == nil {
			return nil, fmt.Errorf("dispatcher at %s: over TCP a certificate, a key and an authority are needed", address)
		}
		target, creds = "passthrough:///"+address, credentials.NewTLS(config)
	}
	conn, err := grpc.NewClient(target, grpc.WithTransportCredentials(creds))
	if err != nil {
		return nil, fmt.Errorf("dispatcher at %s: %w", address, err)
	}
	return &Client{DispatcherClient: NewDispatcherClient(conn), conn: conn}, nil
}

// Close ends the connection.
func (c *Client) Close() error { return c.conn.Close() }
