// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"testing"
	"time"
)

// testAuthority issues identities.
type testAuthority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newTestAuthority(t *testing.T) *testAuthority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &testAuthority{key: key, cert: cert}
}

func (a *testAuthority) issue(t *testing.T, host string) *Identity {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), DNSNames: []string{host}, NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return &Identity{certificate: tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, authority: pool}
}

// TestIdentity shakes hands in all the ways in which the two sides may not belong together.
func TestIdentity(t *testing.T) {
	ours, theirs := newTestAuthority(t), newTestAuthority(t)
	for _, tt := range []struct {
		name           string
		client, server *Identity
		dials, claims  string // the host that the client wants, and the one it says it is
		ok             bool
	}{
		{"both right", ours.issue(t, "a"), ours.issue(t, "b"), "b", "a", true},
		{"server is another host", ours.issue(t, "a"), ours.issue(t, "c"), "b", "a", false},
		{"client is another host", ours.issue(t, "c"), ours.issue(t, "b"), "b", "a", false},
		{"client of a foreign authority", theirs.issue(t, "a"), ours.issue(t, "b"), "b", "a", false},
		{"server of a foreign authority", ours.issue(t, "a"), theirs.issue(t, "b"), "b", "a", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			near, far := pair(t)
			defer near.Close()
			defer far.Close()
			deadline := time.Now().Add(5 * time.Second)
			_, _ = near.SetDeadline(deadline), far.SetDeadline(deadline)
			clientErr := make(chan error, 1)
			go func() {
				defer near.Close() // the other side may be waiting
				c := tls.Client(near, tt.client.Client(tt.dials))
				err := c.Handshake()
				if err == nil {
					_, err = c.Write([]byte{1}) // in TLS 1.3 a client learns of its refusal after its handshake
				}
				clientErr <- err
			}()
			s := tls.Server(far, tt.server.Server())
			err := s.Handshake()
			if err == nil {
				_, err = s.Read(make([]byte, 1))
			}
			if err == nil {
				err = is(s.ConnectionState(), tt.claims)
			}
			_ = far.Close()
			if err == nil && !tt.ok {
				t.Error("the handshake succeeded")
			}
			if tt.ok {
				if cerr := <-clientErr; err != nil || cerr != nil {
					t.Errorf("server: %v, client: %v", err, cerr)
				}
			}
		})
	}
}

// pair returns the two ends of a connection on loopback.
func pair(t *testing.T) (near, far net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if near, err = net.Dial("tcp", ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if far, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	return near, far
}

func TestLoadIdentityRefuses(t *testing.T) {
	if _, err := LoadIdentity(Files{Certificate: "/nonexistent", Key: "/nonexistent", Authority: "/nonexistent"}); err == nil {
		t.Error("loaded from files that do not exist")
	}
	if id, err := LoadIdentity(Files{}); id != nil || err != nil {
		t.Errorf("identity %v, error %v from an empty configuration", id, err)
	}
}
