// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/rehome-net/rehome/agent"
	"github.com/rehome-net/rehome/agent/api"
)

// controlEnvironment names the environment variable that stands for --agent.
const controlEnvironment = "REHOME_AGENT"

// control holds the flags that say which agent a command talks to.
type control struct {
	address, certificate, key, authority string
}

func (c *control) register(cmd *cobra.Command) {
	address := os.Getenv(controlEnvironment)
	if address == "" {
		address = agent.DefaultControlSocket
	}
	f := cmd.Flags()
	f.StringVar(&c.address, "agent", address, "the agent: path of its control socket, or host:port; $"+controlEnvironment+" stands for it")
	f.StringVar(&c.certificate, "tls-cert", "", "your certificate, for an agent over TCP")
	f.StringVar(&c.key, "tls-key", "", "your key, for an agent over TCP")
	f.StringVar(&c.authority, "tls-ca", "", "the authority of the agent's certificate, for an agent over TCP")
}

// dial returns a client of the agent.
func (c *control) dial() (*api.Client, error) {
	if _, _, err := net.SplitHostPort(c.address); err != nil && !strings.HasPrefix(c.address, "/") {
		return nil, &exitError{exitUsage, fmt.Errorf("--agent: %q is neither an absolute path nor host:port", c.address)}
	}
	config, err := c.tls()
	if err != nil {
		return nil, &exitError{exitUsage, err}
	}
	client, err := api.Dial(c.address, config)
	if err != nil {
		return nil, &exitError{exitUsage, err}
	}
	return client, nil
}

func (c *control) tls() (*tls.Config, error) {
	if c.certificate == "" && c.key == "" && c.authority == "" {
		return nil, nil
	}
	cert, err := tls.LoadX509KeyPair(c.certificate, c.key)
	if err != nil {
		return nil, fmt.Errorf("--tls-cert, --tls-key: %w", err)
	}
	pem, err := os.ReadFile(c.authority)
	if err != nil {
		return nil, fmt.Errorf("--tls-ca: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("--tls-ca: %s holds no PEM certificate", c.authority)
	}
	host, _, err := net.SplitHostPort(c.address)
	if err != nil {
		return nil, fmt.Errorf("--agent: %w", err)
	}
	return &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, RootCAs: pool, ServerName: host}, nil
}

// callError turns an error of a call into one for the operator.
func (c *control) callError(err error) error {
	if err == nil {
		return nil
	}
	s, _ := status.FromError(err)
	switch s.Code() {
	case codes.Unavailable:
		return &exitError{exitNoAgent, fmt.Errorf("no agent at %s: is it running, and may you open its socket? (%s)", c.address, s.Message())}
	case codes.InvalidArgument:
		return &exitError{exitUsage, errors.New(s.Message())}
	}
	return &exitError{exitFailed, errors.New(s.Message())}
}

// outputFormat is the --output flag.
type outputFormat string

func (o *outputFormat) register(cmd *cobra.Command) {
	*o = "table"
	cmd.Flags().Var(o, "output", "table or json")
	complete(cmd, "output", cobra.FixedCompletions([]cobra.Completion{"table", "json"}, cobra.ShellCompDirectiveNoFileComp))
}

// String implements pflag.Value.
func (o *outputFormat) String() string { return string(*o) }

// Type implements pflag.Value.
func (o *outputFormat) Type() string { return "format" }

// Set implements pflag.Value.
func (o *outputFormat) Set(s string) error {
	if s != "table" && s != "json" {
		return fmt.Errorf("want table or json")
	}
	*o = outputFormat(s)
	return nil
}
