// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
)

// identity is how this host proves who it is and checks who others are: TLS 1.3, both sides with certificates of
// one authority, each with its host's name as DNS name.
type identity struct {
	certificate tls.Certificate
	authority   *x509.CertPool
}

// loadIdentity reads the files that c names; nil when c is empty.
func loadIdentity(c TLSConfig) (*identity, error) {
	if c == (TLSConfig{}) {
		return nil, nil
	}
	cert, err := tls.LoadX509KeyPair(c.Certificate, c.Key)
	if err != nil {
		return nil, fmt.Errorf("tls: certificate and key: %w", err)
	}
	pem, err := os.ReadFile(c.Authority)
	if err != nil {
		return nil, fmt.Errorf("tls: authority: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("tls: authority: %s holds no PEM certificate", c.Authority)
	}
	return &identity{certificate: cert, authority: pool}, nil
}

// client returns the configuration for a connection to the host called name.
func (id *identity) client(name string) *tls.Config {
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{id.certificate},
		RootCAs:      id.authority,
		ServerName:   name,
	}
}

// server returns the configuration for connections from other hosts, or from operators.
func (id *identity) server() *tls.Config {
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{id.certificate},
		ClientCAs:    id.authority,
		ClientAuth:   tls.RequireAndVerifyClientCert,
	}
}

// peerIs checks that the other end of a finished handshake is the host called name.
func peerIs(state tls.ConnectionState, name string) error {
	if len(state.PeerCertificates) == 0 {
		return errors.New("no certificate")
	}
	if err := state.PeerCertificates[0].VerifyHostname(name); err != nil {
		return fmt.Errorf("certificate: %w", err)
	}
	return nil
}
