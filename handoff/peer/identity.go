// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
)

// Files names PEM files. Certificates carry the host's name as a DNS subject alternative name.
type Files struct {
	Certificate string `yaml:"certificate"`
	Key         string `yaml:"key"`
	// Authority has signed every host's certificate.
	Authority string `yaml:"authority"`
}

// Identity is how this host proves who it is and checks who others are: TLS 1.3, both sides with certificates of
// one authority, each with its host's name as DNS name.
type Identity struct {
	certificate tls.Certificate
	authority   *x509.CertPool
}

// NewIdentity returns the identity of a host that has certificate and trusts authority.
func NewIdentity(certificate tls.Certificate, authority *x509.CertPool) *Identity {
	return &Identity{certificate: certificate, authority: authority}
}

// LoadIdentity reads the files that f names; nil when f is empty.
func LoadIdentity(f Files) (*Identity, error) {
	if f == (Files{}) {
		return nil, nil
	}
	cert, err := tls.LoadX509KeyPair(f.Certificate, f.Key)
	if err != nil {
		return nil, fmt.Errorf("tls: certificate and key: %w", err)
	}
	pem, err := os.ReadFile(f.Authority)
	if err != nil {
		return nil, fmt.Errorf("tls: authority: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("tls: authority: %s holds no PEM certificate", f.Authority)
	}
	return NewIdentity(cert, pool), nil
}

// Certificate returns the certificate of this host.
func (id *Identity) Certificate() *x509.Certificate { return id.certificate.Leaf }

// Client returns the configuration for a connection to the host called name.
func (id *Identity) Client(name string) *tls.Config {
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{id.certificate},
		RootCAs:      id.authority,
		ServerName:   name,
	}
}

// Server returns the configuration for connections from other hosts, or from operators.
func (id *Identity) Server() *tls.Config {
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{id.certificate},
		ClientCAs:    id.authority,
		ClientAuth:   tls.RequireAndVerifyClientCert,
	}
}

// is checks that the other end of a finished handshake is the host called name.
func is(state tls.ConnectionState, name string) error {
	if len(state.PeerCertificates) == 0 {
		return errors.New("no certificate")
	}
	if err := state.PeerCertificates[0].VerifyHostname(name); err != nil {
		return fmt.Errorf("certificate: %w", err)
	}
	return nil
}
