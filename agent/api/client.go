// SPDX-License-Identifier: Apache-2.0

// Package api is what operators and the dispatcher use of an agent: the gRPC messages, made from agent.proto, and a
// client.
package api

import (
	"crypto/tls"
	"fmt"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

//go:generate protoc --go_out=. --go_opt=paths=source_relative --go-grpc_out=. --go-grpc_opt=paths=source_relative agent.proto

// Window is how many bytes may be under way, of one call and of all. A window that is to find its size has both sides ask each other about
// every message, which wakes an agent just when a connection is moving.
const Window = 1 << 20

// Client is a connection to an agent.
type Client struct {
	AgentClient
	conn *grpc.ClientConn
}

// Dial returns a client of the agent at address: the path of its control socket, or host:port, which needs a TLS
// configuration with a certificate that the agent trusts. The connection is opened by the first call.
func Dial(address string, config *tls.Config) (*Client, error) {
	target, creds := "unix:"+address, insecure.NewCredentials()
	if !strings.HasPrefix(address, "/") {
		if config == nil {
			return nil, fmt.Errorf("agent at %s: over TCP a certificate, a key and an authority are needed", address)
		}
		target, creds = "passthrough:///"+address, credentials.NewTLS(config)
	}
	conn, err := grpc.NewClient(target, grpc.WithTransportCredentials(creds),
		grpc.WithStaticStreamWindowSize(Window), grpc.WithStaticConnWindowSize(Window))
	if err != nil {
		return nil, fmt.Errorf("agent at %s: %w", address, err)
	}
	return &Client{AgentClient: NewAgentClient(conn), conn: conn}, nil
}

// Close ends the connection.
func (c *Client) Close() error { return c.conn.Close() }
